"""PET's second loss: words hidden in rows under the patterns, so that a base that learns from few labels keeps its
language (Schick & Schütze 2021, §3.2; timoschick/pet, `lm_training`).
As many rows as the batch has labelled ones stand beside them; the loss is (1 - mlm) of the labels' mean and mlm of the
hidden words' mean in each of these rows. The [MASK] that stands for the label is left alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from orchestrator.errors import BadData
from orchestrator.recipe.methods import Pet
from orchestrator.recipe.schema import JobRecipe
from orchestrator.recipe.tasks import Classify, choices_of
from orchestrator.training.objectives.objective import Example, Fields, Objective, Share, widened
from orchestrator.training.objectives.repeated import Repeated
from orchestrator.training.objectives.running_text import hide
from orchestrator.training.order import Passes, mixed_seed
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning.rows import NO_LABEL, Row
from orchestrator.tuning.transfer import numbers

_BESIDE = 0  #: units of such a row: the loss is averaged over the labelled ones, and these are as many


class HiddenWords:
    def __init__(self, method: Pet, task: Classify, encoder: TextEncoder, rows: Sequence[Fields], seed: int) -> None:
        self._weight, self._limit = method.mlm, task.max_input_tokens
        self._templates = [task.input, *method.patterns]
        self._encoder, self._rows, self._seed = encoder, rows, mixed_seed(seed, 6)
        self._passes = Passes(self._seed, len(rows))

    def beside(self, step: int, count: int) -> list[Example]:
        """The rows of a step: a function of seed and step alone."""
        draw = random.Random(mixed_seed(self._seed, step))
        return [self._example(self._rows[number], draw) for number in self._passes.batch(step, count)]

    def loss_sum(
        self, objective: Objective, share: Share, examples: Sequence[Example], head: nn.Module | None
    ) -> Tensor:
        device, total = share.logits.device, share.logits.new_zeros(())
        beside = [example.units == _BESIDE for example in examples]
        labelled = _Rows.of(share, [row for row, extra in enumerate(beside) if not extra])
        if labelled.rows:
            lines = numbers(labelled.lines, device, torch.long)
            part = replace(
                share,
                logits=share.logits[lines],
                labels=share.labels[lines],
                row_of=numbers(labelled.row_of, device, torch.long),
                starts=labelled.starts,
            )
            total = total + (1 - self._weight) * objective.loss_sum(part, [examples[i] for i in labelled.rows], head)
        hidden = _Rows.of(share, [row for row, extra in enumerate(beside) if extra])
        lines = numbers(hidden.lines, device, torch.long)
        losses = cross_entropy(widened(share.logits[lines]), share.labels[lines], reduction="none")
        return total + self._weight * (losses / numbers(hidden.counts, device)).sum()

    def _example(self, fields: Fields, draw: random.Random) -> Example:
        ids = self._encoder.input_ids(draw.choice(self._templates), fields, limit=self._limit)
        places = [place for place, token in enumerate(ids) if self._encoder.is_text(token)]
        hidden, labels = hide(ids, places, self._encoder.mask, draw) if places else (ids, [NO_LABEL] * len(ids))
        return Example(Row(hidden, labels, prompt=0), units=_BESIDE)


def hidden_words(
    recipe: JobRecipe, encoder: TextEncoder, rows: Sequence[Fields]
) -> tuple[Sequence[Fields], HiddenWords | None]:
    """(the rows with a label, the second loss). Where no row lacks its label, both read all rows."""
    method, task = recipe.method, recipe.task
    if not isinstance(method, Pet) or not method.mlm or not isinstance(task, Classify):
        return rows, None
    labelled, plain = by_label(task, rows)
    return labelled, HiddenWords(method, task, encoder, plain or labelled, recipe.seed)


def by_label(task: Classify, rows: Sequence[Fields]) -> tuple[Sequence[Fields], list[Fields]]:
    """(the rows with a label, each of which keeps its number; the others). Raises BadData where none has one."""
    choices = choices_of(task)
    labelled: list[int] = []
    plain: list[Fields] = []
    for number, fields in enumerate(rows):
        if choices.unlabelled(fields):
            plain.append(fields)
        else:
            labelled.append(number)
    if not labelled:
        raise BadData("no training row has a label", where="task.label")
    return Repeated(rows, len(labelled), lambda number: (labelled[number], 0), mark=""), plain


@dataclass(frozen=True)
class _Rows:
    """Some rows of a share and their lines of logits, counted on the host: a mask would have it wait for a GPU."""

    rows: list[int]
    lines: list[int]
    row_of: list[int]  #: of each line, among these rows
    counts: list[int]  #: of each line: lines of its row
    starts: list[int]

    @classmethod
    def of(cls, share: Share, rows: list[int]) -> _Rows:
        spans = [range(share.starts[row], share.starts[row + 1]) for row in rows]
        return cls(
            rows,
            lines=[line for span in spans for line in span],
            row_of=[number for number, span in enumerate(spans) for _ in span],
            counts=[len(span) for span in spans for _ in span],
            starts=[0, *accumulate(map(len, spans))],
        )
