"""Answers that are a row's own: what fits, and what is refused with a reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_fit import BERT, GPT2, T5, job

from orchestrator.recipe.bases import BaseFacts
from orchestrator.recipe.fit import fit_faults

PAIR = {"type": "classify", "input": "{text}", "labels": {"0": ["{a}"], "1": ["{b}", "neither"]}}
LIST = {"type": "classify", "input": "{text}", "candidates": "{list}", "label": "{a}"}
METHODS: list[dict[str, Any]] = [
    {"type": "prompt-tuning", "length": 3},
    {"type": "prefix-tuning", "length": 3},
    {"type": "p-tuning", "length": 3},
    {"type": "pet"},
    {"type": "fine-tuning"},
    {"type": "lora"},
]
DEEP = {"type": "p-tuning-v2", "length": 3}
NAMED = replace(BERT, layer_names=("query", "value", "q_proj", "c_attn", "q"))


def faults(task: dict[str, Any], method: dict[str, Any], facts: BaseFacts = BERT, **changes: Any) -> list[str]:
    if facts.kind == "masked" and "[MASK]" not in task["input"] and "head" not in task:
        task = {**task, "input": task["input"] + " [MASK]"}
    train = {"steps": 1, "base_lr": 0.1} if method["type"] == "pet" else {"steps": 1, "lr": 0.1}
    if method["type"] == "prompt-design":
        train = {}
    made = job(task, method, train=train, **changes)
    return fit_faults(made, facts, ["text", "a", "b", "list", "label"], {"train": 9})


@pytest.mark.parametrize("task", [PAIR, LIST], ids=["pair", "list"])
@pytest.mark.parametrize("facts", [GPT2, T5, BERT], ids=["gpt2", "t5", "bert"])
def test_what_fits(task: dict[str, Any], facts: BaseFacts) -> None:
    for method in [*METHODS, *([] if facts is T5 else [DEEP]), {"type": "prompt-design", "shots": 2}]:
        assert faults(task, method, facts) == []


HEAD = {"head": {}}
SOFT = {"head": {}, "soft": "{b}"}
WARP, WORDS = {"type": "warp", "length": 2}, {"type": "autoprompt", "label_words": 3}


@pytest.mark.parametrize(
    ("task", "method", "said"),
    [
        (PAIR | HEAD, METHODS[0], "task.head: a head has an output for each label, and here they are each row's own"),
        (LIST | SOFT, METHODS[4], "task.head: a head has an output for each label, and here they are each row's own"),
        (LIST, {"type": "head"}, "method.type: a head has an output for each label"),
        (PAIR, WARP, "method.type: warp trains a vector for each label"),
        (LIST, WARP, "method.type: warp trains a vector for each label"),
        (LIST | {"input": "{text} [T:2]"}, WORDS, "method.label_words: words can be found for labels that all rows"),
        (LIST | {"labels": ["x", "y"]}, METHODS[0], "task.labels: are all rows' own, and task.candidates are each"),
        ({"type": "classify", "input": "{text}"}, METHODS[0], "task.labels: is missing; name all rows' labels, or in"),
        (LIST | {"metrics": ["macro_f1"]}, METHODS[0], "task.metrics: macro_f1 is a score of labels; candidates have"),
        (PAIR | {"metrics": ["record_f1"]}, METHODS[0], "task.metrics: record_f1 is a score of task.candidates"),
        (LIST | {"group": "{b}"}, METHODS[0], "task.group: belongs to scores of labels"),
        (LIST | {"holds": "{b}"}, METHODS[0], "task.holds: is for task.candidates and the score wsc"),
        (PAIR | {"holds": "{b}", "metrics": ["accuracy"]}, METHODS[0], "task.holds: is for task.candidates"),
        (PAIR | {"labels": {"0": ["{a} [MASK]"], "1": ["x"]}}, METHODS[0], "task.labels: the word `{a} [MASK]`: [P:k]"),
        (PAIR | {"labels": {"0": ["{a"], "1": ["x"]}}, METHODS[0], "task.labels: the word `{a`: its braces name no"),
        (PAIR | {"labels": {"0": ["{aa}"], "1": ["x"]}}, METHODS[0], "task.labels: the dataset d has no field `aa`"),
        (LIST | {"candidates": "{lisd}"}, METHODS[0], "task.candidates: the dataset d has no field `lisd`; did you"),
        (LIST, {**METHODS[0], "init": {"type": "labels"}}, "method.init.words: is missing; the words to choose from"),
    ],
)  # fmt: skip
def test_what_is_refused(task: dict[str, Any], method: dict[str, Any], said: str) -> None:
    changes = {"train": {"steps": 1}} if method["type"] == "autoprompt" else {}
    found = faults(task, method) if not changes else _searched(task, method)
    assert any(one.startswith(said) for one in found), found


def _searched(task: dict[str, Any], method: dict[str, Any]) -> list[str]:
    made = job({**task, "input": task["input"] + " [MASK]"}, method, train={"steps": 1})
    return fit_faults(made, BERT, ["text", "a", "b", "list", "label"], {"train": 9})


def test_a_lone_brace_is_a_word_as_any_other() -> None:
    assert faults(PAIR | {"labels": {"open": ["{"], "closed": ["}}"]}}, METHODS[0]) == []
