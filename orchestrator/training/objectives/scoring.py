"""Classify by the likelihood of the label words behind the input (causal) or in the decoder (encoder-decoder).

Trained on the first word of the right label; the predicted label is the one whose best word has the highest mean
log-probability a token, so that long label words are not at a disadvantage. Separator and word are tokenised together
(byte-level BPE: ` good` is one token, `good` after a lone space is not); what they share with the separator alone
belongs to the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from orchestrator.recipe.tasks import Classify
from orchestrator.training.objectives.asking import Answer, softmax
from orchestrator.training.objectives.classes import Classes, refuse_alike
from orchestrator.training.objectives.objective import (
    Example,
    Fields,
    Share,
    all_rows,
    loss_at_labels,
    no_head,
    widened,
)
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning.rows import Row

IGNORED = -100


class LabelScoring:
    reads_hidden = False

    def __init__(self, task: Classify, encoder: TextEncoder) -> None:
        self._task = task
        self._encoder = encoder
        self._classes = Classes(task, encoder)
        self._separator, self._words = _separator_and_words(task, encoder)
        refuse_alike(task.labels, self._words)
        self._longest = max(len(word) for words in self._words for word in words)
        self.metrics = task.metrics
        self.head = no_head
        self.loss_sum = loss_at_labels
        self.references = self._classes.references
        self.usable = all_rows

    def example(self, fields: Fields) -> Example:
        word = self._words[self._classes.number_of(fields)][0]
        return Example(self._row(self._input(fields, tuned=True), word), units=len(word))

    def shown(self, rows: Sequence[Fields]) -> list[list[int]]:
        limit = self._task.max_input_tokens
        found = []
        for fields in rows:
            number = self._classes.number_of(fields)
            word, between = self._words[number][0], self._separator
            if self._encoder.kind == "seq2seq":  # the decoder's own tokens around the word are no text
                word = self._encoder.tokens(" " + self._task.labels[self._classes.names[number]][0])
            found.append([*self._encoder.body(self._task.input, fields, limit=limit), *between, *word])
        return found

    def questions(self, rows: Sequence[Fields], *, tuned: bool) -> list[Row]:
        words = [word for words in self._words for word in words]
        return [self._row(ids, word) for ids in (self._input(row, tuned=tuned) for row in rows) for word in words]

    def measured(self, share: Share, head: nn.Module | None) -> Tensor:
        """[questions]: mean loss a token of the questions' words."""
        losses = cross_entropy(widened(share.logits), share.labels, reduction="none")
        count = torch.bincount(share.row_of, minlength=len(share.positions))
        return losses.new_zeros(len(share.positions)).index_add(0, share.row_of, losses) / count

    def chosen(self, measured: Tensor) -> list[Answer]:
        """A label's score is the mean log-probability a token of its best word."""
        sizes = [len(words) for words in self._words]
        words = measured.view(-1, sum(sizes)).split(sizes, dim=1)
        return softmax(self._classes.names, torch.stack([-theirs.amin(1) for theirs in words], dim=1))

    def _row(self, ids: list[int], word: list[int]) -> Row:
        if self._encoder.kind == "seq2seq":
            return Row(ids=ids, labels=word, prompt=0)
        # With no token of its own between input and word, the infix goes before the input's last token: the position
        # that predicts the word has to see it.
        infix_at = self._encoder.infix_at(len(ids) - max(1, len(self._separator)))
        return Row(ids=ids + word, labels=[IGNORED] * len(ids) + word, prompt=0, infix_at=infix_at)

    def _input(self, fields: Fields, *, tuned: bool) -> list[int]:
        return self._encoder.input_ids(
            self._task.input,
            fields,
            limit=self._task.max_input_tokens,
            behind=self._separator,
            after=self._longest if self._encoder.kind == "causal" else 0,
            tuned=tuned,
        )


def _separator_and_words(task: Classify, encoder: TextEncoder) -> tuple[list[int], list[list[list[int]]]]:
    """What stands between input and word, and the tokens of each label's words behind it."""
    if encoder.kind == "seq2seq":
        return [], [[encoder.decoder_text(word) for word in words] for words in task.labels.values()]
    text = task.separator or ""
    whole = [[encoder.tokens(text + word) for word in words] for words in task.labels.values()]
    together = zip(encoder.tokens(text), *(word for words in whole for word in words), strict=False)
    shared = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, together))
    return encoder.tokens(text)[:shared], [[word[shared:] for word in words] for words in whole]
