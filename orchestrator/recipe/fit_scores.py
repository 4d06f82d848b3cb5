"""Do the scores suit the task? Of labels that a base writes, of a mixture's tasks, and told apart by a field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

from orchestrator.recipe.faults import Finding, KeyPath, did_you_mean
from orchestrator.recipe.fit_choices import score_kind_findings
from orchestrator.recipe.judging import Judging
from orchestrator.recipe.schema import Recipe, TaskScores
from orchestrator.recipe.tasks import OF_LABELS, Classify, Generate, Task
from orchestrator.tasks.metrics import percent

_MIXTURE: KeyPath = ("train", "mixture")


def score_findings(recipe: Recipe) -> list[Finding]:
    """What is wrong whatever the base and the data."""
    judging, mixture = Judging(recipe), recipe.train.mixture
    found: list[Finding] = []
    if isinstance(recipe.task, Generate):
        found += _written_findings(("task",), recipe.task.metrics, recipe.task.labels, recipe.task.group is not None)
    if mixture is None:
        return found
    if recipe.train.scores_by is not None:
        what = "a mixture's scores are told apart by its tasks; take one of the two out"
        found.append(Finding(("train", "scores_by"), what))
    for name, own in mixture.tasks.items():
        path: KeyPath = (*_MIXTURE, "tasks", name)
        judged = judging.of(name)
        found += _unknown(path, recipe.task, own.metrics or [])
        if isinstance(recipe.task, Generate):
            found += _written_findings(path, judged.metrics, judged.labels, judged.group is not None)
        elif isinstance(recipe.task, Classify):
            found += _chosen_findings(path, recipe.task, own)
        found += _unscaled((*path, "metrics"), judged.metrics)
    if mixture.tasks:  # and a task that is not named is scored so
        found += _unscaled(("task", "metrics"), recipe.task.metrics)
    return found


def _unscaled(path: KeyPath, metrics: Sequence[str]) -> Iterator[Finding]:
    if all(percent(metric, 0.0) is None for metric in metrics):
        what = "none of these has a scale up to 100, which the average over the tasks needs: add one that has"
        yield Finding(path, what)


def _chosen_findings(path: KeyPath, task: Classify, own: TaskScores) -> Iterator[Finding]:
    if own.labels:
        yield Finding((*path, "labels"), "belong to `type: generate`; here task.labels are all there are")
    if own.group is not None:
        yield Finding((*path, "group"), "belongs to `type: generate`; here task.group is that of all rows")
    yield from score_kind_findings(task, (*path, "metrics"), own.metrics or [])
    if "group_exact_match" in (own.metrics or []) and task.group is None:
        yield Finding(("task", "group"), "is missing; group_exact_match counts groups of rows")


def score_templates(recipe: Recipe) -> list[tuple[str, str]]:
    """(key, template) of what names fields of a row for its scores."""
    mixture, found = recipe.train.mixture, []
    if recipe.train.scores_by is not None:
        found.append(("train.scores_by", recipe.train.scores_by))
    if mixture is not None:
        found.append(("train.mixture.by", mixture.by))
        found += [(f"train.mixture.tasks.{n}.group", one.group) for n, one in mixture.tasks.items() if one.group]
    return found


def _unknown(path: KeyPath, task: Task, metrics: Sequence[str]) -> Iterator[Finding]:
    (names,) = get_args(type(task).model_fields["metrics"].annotation)
    known = get_args(names)
    for name in metrics:
        if name not in known:
            what = f"`{name}` is no score of `type: {task.type}`{did_you_mean(name, known)}; it has {', '.join(known)}"
            yield Finding((*path, "metrics"), what)


def _written_findings(path: KeyPath, metrics: Sequence[str], labels: Sequence[str], grouped: bool) -> Iterator[Finding]:
    of_labels, others = [m for m in metrics if m in OF_LABELS], [m for m in metrics if m not in OF_LABELS]
    if of_labels and not labels:
        yield Finding((*path, "labels"), f"are missing; {' and '.join(of_labels)} need all labels there are")
    if labels and set(others) - {"exact_match"}:
        what = f"{' and '.join(others)} are scores of texts, and this task writes labels; they have accuracy and others"
        yield Finding((*path, "metrics"), what)
    if "group_exact_match" in metrics and not grouped:
        yield Finding((*path, "group"), "is missing; group_exact_match counts groups of rows")
    if grouped and "group_exact_match" not in metrics:
        yield Finding((*path, "group"), "is for group_exact_match only: add that, or take it out")
    if len(set(labels)) != len(labels):
        yield Finding((*path, "labels"), "a label stands twice")
    if len(labels) == 1:
        yield Finding((*path, "labels"), "must name two labels at least")
