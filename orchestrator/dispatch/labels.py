"""Labels against the data and the base: a label that the recipe lacks would end the job hours after submit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from orchestrator.errors import BadData
from orchestrator.recipe.bases import read_base_facts
from orchestrator.recipe.judging import Judging
from orchestrator.recipe.methods import Pet, Warp
from orchestrator.recipe.schema import JobRecipe
from orchestrator.recipe.scores import NAMES, SCORED, TRAIN
from orchestrator.recipe.tasks import Classify, Generate, Tag, choices_of, fixed_words, own_choices
from orchestrator.recipe.vocabulary import unknown_words, words_of_several_tokens
from orchestrator.registry.datasets import DatasetVersion, distinct_values
from orchestrator.tasks.lists import listed
from orchestrator.tasks.template import parse

_SHOWN = 5
_BETWEEN = "\0"  #: a task and a target: no text of a dataset holds a NUL


class LabelCheck:
    """Reads each dataset and vocabulary once for all jobs of a recipe."""

    def __init__(self) -> None:
        self._in_data: dict[tuple[str, str], dict[str, str]] = {}
        self._wrong_rows: dict[tuple[str, str], list[str]] = {}
        self._unfit: dict[tuple[Path, bool, tuple[str, ...]], list[str]] = {}

    def faults(self, job: JobRecipe, base: Path, data: DatasetVersion) -> list[str]:
        """For a job that fits otherwise: its templates name fields that the data have."""
        task = job.task
        if isinstance(task, Tag):
            return self._missing_tags(task, data)
        if isinstance(task, Generate):
            return self._written(job, task, data)
        if not isinstance(task, Classify):
            return []
        unlabelled = isinstance(job.method, Pet) and job.method.mlm > 0
        missing = [] if task.candidates is not None else self._missing(task, data, unlabelled=unlabelled)
        if own_choices(task) and not missing:
            missing = self._choices(task, data, unlabelled=unlabelled)
        return [*missing, *(self._words(job, task, base) if parse(task.input).masks else [])]

    def _written(self, job: JobRecipe, task: Generate, data: DatasetVersion) -> list[str]:
        """Targets that are none of the labels that the base is to write, by the task of a mixture."""
        judging, mixture = Judging(job), job.train.mixture
        if not task.labels and not (mixture and mixture.tasks):
            return []
        by = "" if mixture is None else mixture.by
        key = (data.ref, by + _BETWEEN + task.target)
        if key not in self._in_data:
            self._in_data[key] = _labels(by + _BETWEEN + task.target, data)
        held: dict[str, dict[str, str]] = {}
        for text, row in self._in_data[key].items():
            name, _, target = text.partition(_BETWEEN)
            held.setdefault(name.strip(), {})[target.strip()] = row
        found = [] if mixture is None else [_no_task(name, held) for name in mixture.tasks if name not in held]
        for name, targets in held.items():
            labels = judging.of(name if mixture else None).labels
            found += _not_named(targets, labels, data) if labels else []
        return found

    def _choices(self, task: Classify, data: DatasetVersion, *, unlabelled: bool) -> list[str]:
        """What is wrong with the rows that bring their own answers."""
        key = (data.ref, repr((task.labels, task.candidates, task.label, task.holds, task.metrics, unlabelled)))
        if key not in self._wrong_rows:
            self._wrong_rows[key] = list(_wrong_rows(task, data, unlabelled=unlabelled))
        wrong = self._wrong_rows[key]
        path = "task.labels" if task.candidates is None else "task.candidates"
        more = [f"{path}: {data.ref}: and {len(wrong) - _SHOWN:,} rows more"] if len(wrong) > _SHOWN else []
        return [*(f"{path}: {data.ref}, {what}" for what in wrong[:_SHOWN]), *more]

    def _missing(self, task: Classify, data: DatasetVersion, *, unlabelled: bool) -> list[str]:
        key = (data.ref, task.label)
        if key not in self._in_data:
            self._in_data[key] = _labels(task.label, data)
        held = self._in_data[key]
        if unlabelled and held.get("", "").startswith(f"{TRAIN} "):
            elsewhere = _labels(task.label, data, SCORED)
            held = {label: row for label, row in held.items() if label} | {k: v for k, v in elsewhere.items() if not k}
        return _not_named(held, task.labels, data)

    def _missing_tags(self, task: Tag, data: DatasetVersion) -> list[str]:
        key = (data.ref, task.tags)
        if key not in self._in_data:
            rows = _labels(task.tags, data)
            self._in_data[key] = {tag: row for text, row in reversed(rows.items()) for tag in listed(text)}
        return _not_named(self._in_data[key], task.labels, data)

    def _words(self, job: JobRecipe, task: Classify, base: Path) -> list[str]:
        single = needs_single_tokens(job) or read_base_facts(base).kind == "seq2seq"
        words = tuple(fixed_words(task))
        key = (base, single, words)
        if key not in self._unfit:
            self._unfit[key] = (words_of_several_tokens if single else unknown_words)(base, words)
        what = "is not in the vocabulary of this base: choose another word"
        if single:
            who = job.method.type if needs_single_tokens(job) else "an encoder-decoder base's [MASK]"
            what = f"is not one token of this base; {who} needs single tokens: choose another word"
        return [f"task.labels: the label word `{word}` {what}" for word in self._unfit[key]]


def _no_task(name: str, held: Mapping[str, object]) -> str:
    return f"train.mixture.tasks: `{name}` is no task of the dataset; it has {', '.join(sorted(held)[:20])}"


def needs_single_tokens(job: JobRecipe) -> bool:
    """Whether label words are rows of the output matrix: others may be several tokens, at as many masks."""
    return isinstance(job.method, Warp) or getattr(job.method, "label_words", None) is not None


def _not_named(held: Mapping[str, str], named: Collection[str], data: DatasetVersion) -> list[str]:
    wrong = [f"`{label}` ({row})" for label, row in held.items() if label not in named]
    if not wrong:
        return []
    more = f" and {len(wrong) - _SHOWN:,} more" if len(wrong) > _SHOWN else ""
    what = f"{data.ref} holds the label{'s' * (len(wrong) > 1)} {', '.join(wrong[:_SHOWN])}{more}"
    advice = "add what is missing, or mend the dataset or the recipe"
    return [f"task.labels: {what}; the recipe knows {', '.join(named)}; {advice}"]


def _wrong_rows(task: Classify, data: DatasetVersion, *, unlabelled: bool) -> Iterator[str]:
    """`train row 3: what`, for each row whose own answers cannot be used. `unlabelled`: training rows may say nothing
    of what is right."""
    choices = choices_of(task)
    fields = tuple(dict.fromkeys([*choices.read, *choices.judged]))
    for split in (name for name in NAMES if data.splits.get(name)):
        for values, number in distinct_values(data, split, fields).items():
            row = dict(zip(fields, values, strict=True))
            if unlabelled and split == TRAIN and choices.unlabelled(row):
                continue
            try:
                right = choices.right(row, list(choices.offered(row)))
                choices.holds(row)
            except BadData as error:
                yield f"{split} row {number:,}: {error.message}"
                continue
            if len(right) > 1 and "accuracy" in task.metrics:
                scores = "accuracy knows one; write metrics: [record_em, record_f1]"
                yield f"{split} row {number:,}: a row has {len(right)} right answers, and {scores}"


def _labels(template: str, data: DatasetVersion, splits: Sequence[str] = NAMES) -> dict[str, str]:
    """Each label that the data hold -> where it stands first, as `train row 3`."""
    parsed = parse(template)
    found: dict[str, str] = {}
    for split in (name for name in splits if data.splits.get(name)):
        for values, row in distinct_values(data, split, parsed.fields).items():
            label = parsed.render_text(dict(zip(parsed.fields, values, strict=True))).strip()
            found.setdefault(label, f"{split} row {row:,}")
    return found
