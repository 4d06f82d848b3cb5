"""Classify by the likelihood of the label words behind the input (causal) or in the decoder (encoder-decoder).

Trained on the first word of the right label; the predicted label is the one whose best word has the highest mean
log-probability a token, so that long label words are not at a disadvantage. Separator and word are tokenised together
(byte-level BPE: ` good` is one token, `good` after a lone space is not); what they share with the separator alone
belongs to the input. The words may be the row's own, and as many as it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from orchestrator.recipe.tasks import Classify
from orchestrator.training.objectives.asking import Answer, softmax
from orchestrator.training.objectives.classes import Classes, refuse_alike, refuse_silent
from orchestrator.training.objectives.objective import (
    Example,
    Fields,
    Share,
    loss_at_labels,
    no_head,
    widened,
)
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning.rows import NO_LABEL, Row


@dataclass(frozen=True)
class Spelled:
    """What a row is answered with, as tokens."""

    words: Mapping[str, Sequence[str]]  #: of each name
    separator: list[int]  #: between input and word
    tokens: list[list[list[int]]]  #: of each name's words, behind it

    @property
    def longest(self) -> int:
        return max(len(word) for words in self.tokens for word in words)


class LabelScoring:
    reads_hidden = False

    def __init__(self, task: Classify, encoder: TextEncoder) -> None:
        self._task = task
        self._encoder = encoder
        self._classes = Classes(task, encoder)
        self._fixed = None if self._classes.own else _spelled(task, encoder, task.labels)
        if self._fixed is not None:
            refuse_alike(task.labels, self._fixed.tokens)
        self.metrics = task.metrics
        self.head = no_head
        self.loss_sum = loss_at_labels
        self.references = self._classes.references
        self.usable = self._classes.usable

    def example(self, fields: Fields) -> Example:
        spelled = self._of(fields)
        word = spelled.tokens[self._right(spelled, fields)][0]
        return Example(self._row(self._input(fields, spelled, tuned=True), spelled, word), units=len(word))

    def shown(self, rows: Sequence[Fields]) -> list[list[int]]:
        limit = self._task.max_input_tokens
        found = []
        for fields in rows:
            spelled = self._of(fields)
            number = self._right(spelled, fields)
            word = spelled.tokens[number][0]
            if self._encoder.kind == "seq2seq":  # the decoder's own tokens around the word are no text
                word = self._encoder.tokens(" " + list(spelled.words.values())[number][0])
            found.append([*self._encoder.body(self._task.input, fields, limit=limit), *spelled.separator, *word])
        return found

    def questions(self, rows: Sequence[Fields], *, tuned: bool) -> list[Row]:
        return [row for fields in rows for row in self._asked(fields, tuned=tuned)]

    def measured(self, share: Share, head: nn.Module | None) -> Tensor:
        """[questions]: mean loss a token of the questions' words."""
        losses = cross_entropy(widened(share.logits), share.labels, reduction="none")
        count = torch.bincount(share.row_of, minlength=len(share.positions))
        return losses.new_zeros(len(share.positions)).index_add(0, share.row_of, losses) / count

    def chosen(self, measured: Tensor, rows: Sequence[Fields]) -> list[Answer]:
        """A label's score is the mean log-probability a token of its best word."""
        offered = [self._classes.offered(fields) for fields in rows]
        if self._classes.own:
            sizes = [sum(map(len, one.values())) for one in offered]
            lots = zip(offered, measured.split(sizes), strict=True)
            return [answer for one, lines in lots for answer in _best_words(one, lines[None])]
        return _best_words(self._task.labels, measured.view(len(rows), -1))

    def _asked(self, fields: Fields, *, tuned: bool) -> Iterable[Row]:
        spelled = self._of(fields)
        ids = self._input(fields, spelled, tuned=tuned)
        return (self._row(ids, spelled, word) for words in spelled.tokens for word in words)

    def _of(self, fields: Fields) -> Spelled:
        if self._fixed is not None:
            return self._fixed
        spelled = _spelled(self._task, self._encoder, self._classes.offered(fields))
        refuse_silent(spelled.words, spelled.tokens)
        return spelled

    def _right(self, spelled: Spelled, fields: Fields) -> int:
        return list(spelled.words).index(self._classes.right(fields, spelled.words)[0])

    def _row(self, ids: list[int], spelled: Spelled, word: list[int]) -> Row:
        if self._encoder.kind == "seq2seq":
            return Row(ids=ids, labels=word, prompt=0)
        # With no token of its own between input and word, the infix goes before the input's last token: the position
        # that predicts the word has to see it.
        infix_at = self._encoder.infix_at(len(ids) - max(1, len(spelled.separator)))
        return Row(ids=ids + word, labels=[NO_LABEL] * len(ids) + word, prompt=0, infix_at=infix_at)

    def _input(self, fields: Fields, spelled: Spelled, *, tuned: bool) -> list[int]:
        return self._encoder.input_ids(
            self._task.input,
            fields,
            limit=self._task.max_input_tokens,
            behind=spelled.separator,
            after=spelled.longest if self._encoder.kind == "causal" else 0,
            tuned=tuned,
        )


def _best_words(words: Mapping[str, Sequence[str]], losses: Tensor) -> list[Answer]:
    """[rows, words] -> the answer of each row."""
    each = losses.split([len(theirs) for theirs in words.values()], dim=1)
    return softmax(list(words), torch.stack([-theirs.amin(1) for theirs in each], dim=1))


def _spelled(task: Classify, encoder: TextEncoder, offered: Mapping[str, Sequence[str]]) -> Spelled:
    if encoder.kind == "seq2seq":
        return Spelled(offered, [], [[encoder.decoder_text(word) for word in words] for words in offered.values()])
    text = task.separator or ""
    whole = [[encoder.tokens(text + word) for word in words] for words in offered.values()]
    together = zip(encoder.tokens(text), *(word for words in whole for word in words), strict=False)
    shared = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, together))
    return Spelled(offered, encoder.tokens(text)[:shared], [[word[shared:] for word in words] for words in whole])
