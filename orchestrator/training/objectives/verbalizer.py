"""A verbalizer: a label's score is the mean of its words' logits at [MASK] (Schick & Schütze 2021, PET). Words of one
token; others are `masked_words`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from orchestrator.errors import BadRecipe
from orchestrator.recipe.tasks import Classify
from orchestrator.training.objectives.asking import Answer, softmax
from orchestrator.training.objectives.classes import Classes, refuse_alike
from orchestrator.training.objectives.objective import Example, Fields, Share, all_rows, no_head, widened
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning.rows import Row
from orchestrator.tuning.transfer import Constants


class VerbalizerClassification:
    reads_hidden = False

    def __init__(self, task: Classify, encoder: TextEncoder) -> None:
        self._task = task
        self._encoder = encoder
        self._classes = Classes(task, encoder)
        self.names = self._classes.names
        self.tokens = [[_one_token(encoder, word) for word in words] for words in task.labels.values()]
        refuse_alike(task.labels, [[[token] for token in tokens] for tokens in self.tokens])
        self._columns = Constants(self.tokens)
        self.metrics = task.metrics
        self.head = no_head
        self.references = self._classes.references
        self.usable = all_rows

    def example(self, fields: Fields) -> Example:
        number = self._classes.number_of(fields)
        return Example(self._row(fields, number, tuned=True), units=1)

    def loss_sum(self, share: Share, examples: Sequence[Example], head: nn.Module | None) -> Tensor:
        return cross_entropy(self._scores(share.logits), share.labels, reduction="sum")

    def questions(self, rows: Sequence[Fields], *, tuned: bool) -> list[Row]:
        # Label 0 only marks the mask as the position to read.
        return [self._row(fields, 0, tuned=tuned) for fields in rows]

    def measured(self, share: Share, head: nn.Module | None) -> Tensor:
        return self._scores(share.logits)

    def chosen(self, measured: Tensor, rows: Sequence[Fields]) -> list[Answer]:
        return softmax(self._classes.names, measured)

    def shown(self, rows: Sequence[Fields]) -> list[list[int]]:
        limit, template = self._task.max_input_tokens, self._task.input
        words = [[self.tokens[self._classes.number_of(fields)][0]] for fields in rows]
        return [
            self._encoder.body(template, fields, limit=limit, mask=word)
            for fields, word in zip(rows, words, strict=True)
        ]

    def _scores(self, logits: Tensor) -> Tensor:
        """[rows, V] -> [rows, labels]."""
        return torch.stack([widened(logits[:, words]).mean(-1) for words in self._columns.on(logits.device)], dim=-1)

    def _row(self, fields: Fields, number: int, *, tuned: bool) -> Row:
        ids = self._encoder.input_ids(self._task.input, fields, limit=self._task.max_input_tokens, tuned=tuned)
        return self._encoder.filling(ids, number)


def _one_token(encoder: TextEncoder, word: str) -> int:
    found = encoder.one_token(word)
    if found is not None:
        return found
    count = len(encoder.tokens(word))
    what = "not in the vocabulary of this base" if count == 1 else f"{count} tokens on this base"
    raise BadRecipe(
        f"the label word {word!r} is {what}; its row of the output matrix is needed",
        where="task.labels",
        hint="choose a word of one token",
    )
