"""Labels against the data and the base: a label that the recipe lacks would end the job hours after submit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from orchestrator.recipe.schema import JobRecipe
from orchestrator.recipe.tasks import Classify, Tag
from orchestrator.recipe.vocabulary import words_of_several_tokens
from orchestrator.registry.datasets import DatasetVersion, distinct_values
from orchestrator.tasks.lists import listed
from orchestrator.tasks.template import parse

SPLITS = ("train", "validation", "test")  # what a job reads
_SHOWN = 5


class LabelCheck:
    """Reads each dataset and vocabulary once for all jobs of a recipe."""

    def __init__(self) -> None:
        self._in_data: dict[tuple[str, str], dict[str, str]] = {}
        self._several: dict[tuple[Path, tuple[str, ...]], list[str]] = {}

    def faults(self, job: JobRecipe, base: Path, data: DatasetVersion) -> list[str]:
        """For a job that fits otherwise: its templates name fields that the data have."""
        task = job.task
        if isinstance(task, Tag):
            return self._missing_tags(task, data)
        if not isinstance(task, Classify):
            return []
        return [*self._missing(task, data), *(self._words(task, base) if parse(task.input).masks else [])]

    def _missing(self, task: Classify, data: DatasetVersion) -> list[str]:
        key = (data.ref, task.label)
        if key not in self._in_data:
            self._in_data[key] = _labels(task.label, data)
        return _not_named(self._in_data[key], task.labels, data)

    def _missing_tags(self, task: Tag, data: DatasetVersion) -> list[str]:
        key = (data.ref, task.tags)
        if key not in self._in_data:
            rows = _labels(task.tags, data)
            self._in_data[key] = {tag: row for text, row in reversed(rows.items()) for tag in listed(text)}
        return _not_named(self._in_data[key], task.labels, data)

    def _words(self, task: Classify, base: Path) -> list[str]:
        words = tuple(word for words in task.labels.values() for word in words)
        key = (base, words)
        if key not in self._several:
            self._several[key] = words_of_several_tokens(base, words)
        advice = "a verbalizer needs single tokens: choose another word"
        return [
            f"task.labels: the label word `{word}` is not one token of this base; {advice}"
            for word in self._several[key]
        ]


def _not_named(held: Mapping[str, str], named: Collection[str], data: DatasetVersion) -> list[str]:
    wrong = [f"`{label}` ({row})" for label, row in held.items() if label not in named]
    if not wrong:
        return []
    more = f" and {len(wrong) - _SHOWN:,} more" if len(wrong) > _SHOWN else ""
    what = f"{data.ref} holds the label{'s' * (len(wrong) > 1)} {', '.join(wrong[:_SHOWN])}{more}"
    advice = "add what is missing, or mend the dataset or the recipe"
    return [f"task.labels: {what}; the recipe knows {', '.join(named)}; {advice}"]


def _labels(template: str, data: DatasetVersion) -> dict[str, str]:
    """Each label that the data hold -> where it stands first, as `train row 3`."""
    parsed = parse(template)
    found: dict[str, str] = {}
    for split in (name for name in SPLITS if data.splits.get(name)):
        for values, row in distinct_values(data, split, parsed.fields).items():
            label = parsed.render_text(dict(zip(parsed.fields, values, strict=True))).strip()
            found.setdefault(label, f"{split} row {row:,}")
    return found
