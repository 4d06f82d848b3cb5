"""Which methods and tasks a base fits, found by asking `recipe.fit` about a small recipe of each."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from orchestrator.recipe.bases import BaseFacts
from orchestrator.recipe.fit import fit_faults
from orchestrator.recipe.schema import JobRecipe

_LABELS = {"yes": ["yes"], "no": ["no"]}
_WORDS: dict[str, Any] = {"type": "classify", "labels": _LABELS}
_GENERATE: dict[str, Any] = {"type": "generate", "target": "{target}", "max_new_tokens": 1}
_HEAD: dict[str, Any] = {"type": "classify", "labels": _LABELS, "head": {}}

#: method -> (its settings, what stands before the text in its templates)
_METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "prompt-tuning": ({"length": 1}, ""),
    "prefix-tuning": ({"length": 1}, ""),
    "p-tuning": ({}, "[P:1] "),
    "p-tuning-v2": ({"length": 1}, ""),
    "warp": ({"init": {"type": "vocab"}}, "[P:1] "),
    "autoprompt": ({"init": {"type": "vocab"}}, "[T:1] "),
    "pet": ({"patterns": ["a {text}"]}, ""),
    "head": ({}, ""),
    "prompt-design": ({}, ""),
    "fine-tuning": ({}, ""),
    "lora": ({}, ""),
    "lm-adapt": ({}, ""),
}
#: Those that train nothing, or without a learning rate.
_TRAIN: dict[str, dict[str, Any]] = {"prompt-design": {}, "pet": {}, "autoprompt": {"steps": 1}}
_TASKS: dict[str, dict[str, Any]] = {
    "generate": _GENERATE,
    "classify by words": _WORDS,
    "classify by a head": _HEAD,
    "cloze": {"type": "cloze", "target": "{target}"},
    "tag": {"type": "tag", "words": "text", "tags": "{label}", "labels": ["O", "X"]},
    "span": {"type": "span", "context": "{target}", "answers": "{label}"},
    "running text": {"type": "text"},
}


def fitting(facts: BaseFacts) -> dict[str, list[str]]:
    """Method -> the tasks that it can be used for on this base; methods that fit no task are left out."""
    found = {}
    for method, (settings, before) in _METHODS.items():
        whole = {"type": method, **settings}
        tasks = [
            name
            for name, task in _TASKS.items()
            if any(_fits(facts, whole, task, f"{before}{{text}}{mask}", mask) for mask in ("", " [MASK]"))
        ]
        if tasks:
            found[method] = tasks
    return found


def _fits(facts: BaseFacts, method: dict[str, Any], task: dict[str, Any], text: str, mask: str) -> bool:
    if "patterns" in method:
        method = {**method, "patterns": [pattern + mask for pattern in method["patterns"]]}
    recipe = {
        "name": "fit",
        "base": "base",
        "dataset": "rows",
        "task": {**task, "input": text},
        "method": method,
        "train": _TRAIN.get(method["type"], {"steps": 1, "lr": 0.1}),
    }
    try:
        job = JobRecipe.model_validate(recipe)
    except ValidationError:
        return False
    return not fit_faults(job, facts, ["text", "target", "label"], {"train": 1, "validation": 1})
