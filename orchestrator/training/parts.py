"""The scores of answers: of all rows, of each task of a mixture, and of what a field tells apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from orchestrator.errors import BadData
from orchestrator.recipe.judging import AVERAGE, Judged, Judging
from orchestrator.tasks.metrics import percent, score
from orchestrator.training.mixture import places, task_names
from orchestrator.training.objectives.objective import Fields

_MOST = 100  #: parts that scores are told apart in: each is a line in every table


def values_of(
    judging: Judging, rows: Sequence[Fields], predictions: Sequence[str], references: Sequence[list[str]]
) -> dict[str, float]:
    """Metric -> value; of a part `metric:part`. `rows` [B]: what the predictions [B] are about."""
    tasks = [judging.task_of(row) for row in rows]
    parts = [judging.part_of(row) for row in rows]
    if tasks and tasks[0] is not None:
        return _by_task(judging, [task or "" for task in tasks], predictions, references)
    judged = judging.of(None)
    values = score(judged.metrics, predictions, references, labels=judged.labels)
    if parts and parts[0] is not None:
        for _, called, mine in _parted([part or "" for part in parts]):
            found = _scored(judged, judged.labels, mine, predictions, references)
            values |= {f"{name}:{called}": value for name, value in found.items()}
    return values


def refuse_many_parts(judging: Judging, rows: Sequence[Fields]) -> None:
    """BadData where scores would be told apart in more parts than anybody reads."""
    parts = {judging.part_of(row) for row in rows}
    if len(parts) > _MOST:
        what = f"the rows have {len(parts):,} different values, and scores are told apart for {_MOST} at most"
        raise BadData(what, where="train.scores_by", hint="name a field with fewer values")


def _by_task(
    judging: Judging, tasks: Sequence[str], predictions: Sequence[str], references: Sequence[list[str]]
) -> dict[str, float]:
    """Each score of each task (`accuracy:rte`), and under its plain name the mean over the tasks that have it, large
    and small alike; where tasks have scores of their own, the average over them too."""
    values: dict[str, float] = {}
    each: dict[str, dict[str, float]] = {}
    for task, called, mine in _parted(tasks):
        judged = judging.of(task)
        each[task] = _scored(judged, _labels_of(judged, mine, references), mine, predictions, references)
        values |= {f"{name}:{called}": value for name, value in each[task].items()}
    names = dict.fromkeys(name for found in each.values() for name in found)
    means = {name: fmean(found[name] for found in each.values() if name in found) for name in names}
    return {**({AVERAGE: _average(each)} if judging.averaged else {}), **means, **values}


def _average(each: Mapping[str, Mapping[str, float]]) -> float:
    """The mean over tasks of the mean of each one's scores, 0-100; those without such a scale stay out."""
    found = [[percent(name, value) for name, value in values.items()] for values in each.values()]
    kept = [[value for value in values if value is not None] for values in found]
    return fmean(fmean(values) for values in kept if values)


def _labels_of(judged: Judged, mine: Sequence[int], references: Sequence[list[str]]) -> Sequence[str]:
    """Of a task's own labels one is the positive one; rows that hold only one of them do not tell which they are."""
    if judged.own_labels:
        return judged.labels
    held = {label for i in mine for label in references[i][:1]}
    there = [label for label in judged.labels if label in held]
    return there if len(there) > 1 else judged.labels


def _scored(
    judged: Judged,
    labels: Sequence[str],
    mine: Sequence[int],
    predictions: Sequence[str],
    references: Sequence[list[str]],
) -> dict[str, float]:
    return score(judged.metrics, [predictions[i] for i in mine], [references[i] for i in mine], labels=labels)


def _parted(parts: Sequence[str]) -> list[tuple[str, str, list[int]]]:
    """(part, what it is called in a score's name, the numbers of its rows), by the alphabet."""
    found = places(parts)
    return [(part, called, found[part]) for part, called in sorted(task_names(found).items())]
