"""docs/reference/methods.md says what is so: every cell is run."""

from __future__ import annotations

import re
from pathlib import Path

from matrix import METHODS, MODELS, TASKS, WITH_EACH_METHOD, page

from orchestrator.tuning import METHODS as TABLE

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "methods.md"


def test_every_method_works_or_is_refused_and_the_page_says_so() -> None:
    assert page() == REFERENCE.read_text(encoding="utf-8"), "run `make docs`"


def test_no_method_is_missing() -> None:
    assert {config["type"] for config, _ in METHODS.values()} == set(TABLE)
    assert len(MODELS) == 17


CAUSAL = {"GPT-2", "GPT-NeoX", "Llama", "Qwen3", "Mistral", "Gemma 3", "Phi-3", "OPT"}
TWO_STACKS = {"BART", "Pegasus", "T5 v1.0", "T5 v1.1", "mT5"}
#: All that may be refused. The page is made from what the code says; this is not.
REFUSED = {
    "prefix-tuning, infix": set(MODELS) - {"GPT-2", "OPT"},
    "p-tuning-v2": TWO_STACKS,
    "warp": CAUSAL | {"Pegasus"},
    "fine-tuning, biases": {"Llama", "Qwen3", "Mistral", "Gemma 3", "Phi-3", "T5 v1.0", "T5 v1.1", "mT5"},
}
ENCODERS = set(MODELS) - CAUSAL - TWO_STACKS
REFUSED_TASKS = {
    "generate": ENCODERS,
    "classify, by what follows": ENCODERS,
    "classify, at [MASK]": CAUSAL | {"Pegasus"},
    "cloze": {"Pegasus"},
}
WITH_HEADS = {"classify, by a head", "tag", "span"}
WITH_WORDS = set(TASKS) - WITH_HEADS
#: method -> tasks that it is not for on any base, beside those that the base itself cannot do
NOT_FOR = {
    "prompt-tuning": set(),
    "prefix-tuning": set(),
    # nothing stands between an input and a head; and behind an input without a separator nothing sees the infix
    "prefix-tuning, infix": {*WITH_HEADS, "classify, by what follows"},
    "prefix-tuning, embedding-only": set(),
    "p-tuning": set(),
    "p-tuning-v2": set(),
    "warp": set(TASKS) - {"classify, at [MASK]"},
    "autoprompt": WITH_HEADS,
    "pet": {*WITH_HEADS, "generate", "cloze"},
    "head": WITH_WORDS,
    "prompt-design": WITH_HEADS,
    "fine-tuning": set(),
    "lora": set(),
    "fine-tuning, biases": set(),
}


def refused(columns: list[str], lines: list[str]) -> set[tuple[str, str]]:
    """(what the row is of, column) of every cell that is not `yes`."""
    (_, *heads), _, *rows = [line.strip("| ").split(" | ") for line in lines]
    assert heads == columns
    return {(row[0], head) for row in rows for head, cell in zip(heads, row[1:], strict=True) if cell != "yes"}


def test_what_must_work_works() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    methods, tasks, both = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)[:3]]
    assert [len(lines) - 2 for lines in (methods, tasks, both)] == [17, 17, len(WITH_EACH_METHOD) * len(NOT_FOR)]
    assert refused(list(METHODS), methods) == {(model, method) for method, some in REFUSED.items() for model in some}
    by_task = {(model, task) for task, some in REFUSED_TASKS.items() for model in some}
    assert refused(list(TASKS), tasks) == by_task
    assert refused(list(TASKS), both) == {
        (f"{model}, {method}", task)
        for model in WITH_EACH_METHOD
        for method in NOT_FOR
        for task in TASKS
        if (model, task) in by_task
        or task in NOT_FOR[method]
        or (method != "warp" and model in REFUSED.get(method, ()))
    }
