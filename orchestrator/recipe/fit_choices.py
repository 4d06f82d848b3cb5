"""Answers that are a row's own (`recipe.tasks.own_choices`): what can learn from them, and what is scored of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from orchestrator.recipe.faults import Finding, KeyPath
from orchestrator.recipe.methods import AutoPrompt, Head, Warp
from orchestrator.recipe.schema import Recipe
from orchestrator.recipe.tasks import Classify, label_words, own_choices
from orchestrator.tasks.choices import names_fields
from orchestrator.tasks.template import parse

OF_CANDIDATES = frozenset({"accuracy", "record_em", "record_f1", "wsc"})
ONLY_OF_CANDIDATES = OF_CANDIDATES - {"accuracy"}

_TYPO = re.compile(r"\{\s*\w|\w\s*\}")  # a brace at a name, in what is no template


def choice_findings(recipe: Recipe, task: Classify) -> list[Finding]:
    """What is wrong whatever the base and the data."""
    found = [] if task.head is not None else _word_findings(task)
    if task.candidates is None and not task.labels:
        what = "is missing; name all rows' labels, or in task.candidates where the row's own answers stand"
        found.append(Finding(("task", "labels"), what))
    if task.candidates is not None and task.labels:
        what = "are all rows' own, and task.candidates are each row's: take one of them out"
        found.append(Finding(("task", "labels"), what))
    found += score_kind_findings(task, ("task", "metrics"), task.metrics)
    found += _score_findings(task)
    return found + (_unable(recipe, task) if own_choices(task) else [])


def _word_findings(task: Classify) -> list[Finding]:
    found = []
    for word in label_words(task):
        what = None
        if not names_fields(word):
            what = "its braces name no field; write {field}" if _TYPO.search(word) else None
        elif (template := parse(word)).virtual_tokens or template.masks:
            what = "[P:k], [T:k] and [MASK] stand in `input` only"
        if what is not None:
            found.append(Finding(("task", "labels"), f"the word `{word}`: {what}"))
    return found


def score_kind_findings(task: Classify, path: KeyPath, metrics: Sequence[str]) -> list[Finding]:
    """Scores of labels where there are candidates, and the other way round."""
    found = []
    allowed = OF_CANDIDATES if task.candidates is not None else None
    for name in metrics:
        if allowed is None and name in ONLY_OF_CANDIDATES:
            found.append(Finding(path, f"{name} is a score of task.candidates; labels have accuracy and others"))
        if allowed is not None and name not in allowed:
            known = ", ".join(sorted(allowed))
            found.append(Finding(path, f"{name} is a score of labels; candidates have {known}"))
    return found


def _score_findings(task: Classify) -> list[Finding]:
    found = []
    if task.group is not None and task.candidates is not None:
        found.append(Finding(("task", "group"), "belongs to scores of labels, which candidates do not have"))
    if task.holds is not None and (task.candidates is None or set(task.metrics) != {"wsc"}):
        what = "is for task.candidates and the score wsc, the only one that knows of answers that are none"
        found.append(Finding(("task", "holds"), f"{what}: write metrics: [wsc]"))
    return found


def _unable(recipe: Recipe, task: Classify) -> list[Finding]:
    method, own = recipe.method, "here they are each row's own"
    if isinstance(method, Head) or task.head is not None:
        path = ("method", "type") if isinstance(method, Head) else ("task", "head")
        what = f"a head has an output for each label, and {own}; let the base score their words instead"
        return [Finding(path, f"{what}, by any method that needs no head")]
    if isinstance(method, Warp):
        advice = "use p-tuning, which places virtual tokens the same way"
        return [Finding(("method", "type"), f"warp trains a vector for each label, and {own}; {advice}")]
    if isinstance(method, AutoPrompt) and method.label_words is not None:
        what = f"words can be found for labels that all rows share, and {own}: take it out"
        return [Finding(("method", "label_words"), what)]
    return []
