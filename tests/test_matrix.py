"""docs/reference/methods.md says what is so: every cell is run."""

from __future__ import annotations

import re
from pathlib import Path

from matrix import METHODS, MODELS, page

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
    "warp": CAUSAL | TWO_STACKS,
    "head": CAUSAL | TWO_STACKS,
    "fine-tuning, biases": {"Llama", "Qwen3", "Mistral", "Gemma 3", "Phi-3", "T5 v1.0", "T5 v1.1", "mT5"},
}


def test_what_must_work_works() -> None:
    first, *_ = re.findall(r"(?:^\|.*\n)+", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE)
    (_, *methods), _, *rows = [line.strip("| ").split(" | ") for line in first.splitlines()]
    assert (methods, [model for model, *_ in rows]) == (list(METHODS), list(MODELS))
    refused = {(row[0], method) for row in rows for method, cell in zip(methods, row[1:], strict=True) if cell != "yes"}
    assert refused == {(model, method) for method, models in REFUSED.items() for model in models}
