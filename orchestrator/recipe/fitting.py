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
_TEXT: dict[str, Any] = {"type": "text"}

#: method -> (its settings, what stands before the text in its templates)
_METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "prompt-tuning": ({"length": 1}, ""),
    "prefix-tuning": ({"length": 1}, ""),
    "p-tuning": ({}, "[P:1] "),
    "p-tuning-v2": ({"length": 1}, ""),
    "warp": ({}, "[P:1] "),
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
_TASKS = {"generate": _GENERATE, "classify by words": _WORDS, "classify by a head": _HEAD, "running text": _TEXT}


def fitting(facts: BaseFacts) -> dict[str, list[str]]:
    """Method -> the tasks that it can be used for on this base; methods that fit no task are left out."""
    found = {}
    for method, (settings, before) in _METHODS.items():
        tasks = [name for name, task in _TASKS.items() if _fits(facts, {"type": method, **settings}, task, before)]
        if tasks:
            found[method] = tasks
    return found


def _fits(facts: BaseFacts, method: dict[str, Any], task: dict[str, Any], before: str) -> bool:
    """With the mask where a verbalizer of a masked base needs one."""
    masked = facts.kind == "masked" and task is _WORDS
    mask = " [MASK]" if masked else ""
    if "patterns" in method:
        method = {**method, "patterns": [pattern + mask for pattern in method["patterns"]]}
    recipe = {
        "name": "fit",
        "base": "base",
        "dataset": "rows",
        "task": {**task, "input": f"{before}{{text}}{mask}"},
        "method": method,
        "train": _TRAIN.get(method["type"], {"steps": 1, "lr": 0.1}),
    }
    try:
        job = JobRecipe.model_validate(recipe)
    except ValidationError:
        return False
    return not fit_faults(job, facts, ["text", "target", "label"], {"train": 1, "validation": 1})
