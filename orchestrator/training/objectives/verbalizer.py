"""A verbalizer: a label's score is the mean of its words' logits at [MASK] (Schick & Schütze 2021, PET), or the sum of
their probabilities (Shin et al. 2020, AutoPrompt). Words of one token; others are `masked_words`."""

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

    def __init__(self, task: Classify, encoder: TextEncoder, *, summed: bool = False) -> None:
        """`summed`: the probabilities are among the whole vocabulary, so that one way to lower the loss is a text that
        makes any of the label's words likelier than all that are none."""
        self._task, self._summed = task, summed
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
        scores = self._scores(share.logits)
        if self._summed:
            return -scores.gather(1, share.labels[:, None]).sum()
        return cross_entropy(scores, share.labels, reduction="sum")

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
        """[rows, V] -> [rows, labels]; summed, the logarithms of the labels' probabilities."""
        columns = self._columns.on(logits.device)
        if self._summed:
            likely = widened(logits).log_softmax(-1)
            return torch.stack([likely[:, words].logsumexp(-1) for words in columns], dim=-1)
        return torch.stack([widened(logits[:, words]).mean(-1) for words in columns], dim=-1)

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
