"""Rows against the task: one that it cannot use would end the job when its turn comes, hours after submit."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from orchestrator.errors import BadData
from orchestrator.recipe.schema import JobRecipe
from orchestrator.recipe.scores import NAMES, TRAIN
from orchestrator.recipe.tasks import Classify, Span, Tag, Task
from orchestrator.registry.datasets import DatasetVersion, values_of
from orchestrator.tasks.lists import answers
from orchestrator.tasks.template import Template, parse
from orchestrator.tasks.usable import place_of, probabilities, words_and_tags

Fields = Mapping[str, str]
Check = Callable[[Fields, str], object]  #: of a row and its split; raises BadData


class RowCheck:
    """Reads each dataset once for all jobs of a recipe that ask the same of its rows."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list[str]] = {}

    def faults(self, job: JobRecipe, data: DatasetVersion) -> list[str]:
        """For a job that fits otherwise: its templates name fields that the data have."""
        made = _check(job.task)
        if made is None:
            return []
        key, templates, check = made
        asked = (data.ref, job.task.model_dump_json())
        if asked not in self._found:
            self._found[asked] = [
                f"{key}: {fault}" for split in NAMES if data.splits.get(split)
                for fault in _in_split(data, split, templates, check)
            ]  # fmt: skip
        return self._found[asked]


def _in_split(data: DatasetVersion, split: str, templates: list[Template], check: Check) -> list[str]:
    """The first row that cannot be used, and how many more there are."""
    fields = list(dict.fromkeys(name for template in templates for name in template.fields))
    first, count = "", 0
    for number, values in enumerate(values_of(data, split, fields), start=1):
        try:
            check(dict(zip(fields, values, strict=True)), split)
        except BadData as error:
            count += 1
            first = first or f"{data.ref}, {split} row {number:,}: {error.message}"
    if not count:
        return []
    more = f" ({count - 1:,} more such row{'s' * (count > 2)})" if count > 1 else ""
    return [f"{first}{more}; mend the recipe or the dataset, or add it again without {'them' if count > 1 else 'it'}"]


def _check(task: Task) -> tuple[str, list[Template], Check] | None:
    """(key to blame, templates that name what is read, what a row must hold)"""
    if isinstance(task, Tag):
        return _tags(task)
    if isinstance(task, Span):
        return _spans(task)
    if isinstance(task, Classify) and task.soft is not None:
        return _soft(task, task.soft)
    return None


def _tags(task: Tag) -> tuple[str, list[Template], Check]:
    words, tags = parse(f"{{{task.words}}}"), parse(task.tags)

    def check(row: Fields, split: str) -> None:
        words_and_tags(words.render_text(row), tags.render_text(row))

    return "task.tags", [words, tags], check


def _spans(task: Span) -> tuple[str, list[Template], Check]:
    context, wanted = parse(task.context), parse(task.answers)

    def check(row: Fields, split: str) -> None:
        text, found = context.render_text(row), answers(wanted.render_text(row))
        if split != TRAIN:
            return  # scores compare texts: an answer may stand nowhere
        if not found and not task.unanswerable:
            raise BadData("a row has no answer, and task.unanswerable is not true")
        if found:
            place_of(*found[0], text)

    return "task.answers", [context, wanted], check


def _soft(task: Classify, soft: str) -> tuple[str, list[Template], Check]:
    template = parse(soft)

    def check(row: Fields, split: str) -> None:
        if split == TRAIN:
            probabilities(template.render_text(row), list(task.labels), task.temperature)

    return "task.soft", [template], check
