"""Language modelling on plain text.

Encoder-decoder: a prefix of the text in the encoder and the rest in the decoder (T5's prefix LM, with which Lester et
al. 2021 adapt their bases). Causal: every token from those before it. Masked: 15 % of the tokens, of which 80 % are
hidden, 10 % replaced and 10 % left (Devlin et al. 2019). Where a row is cut, and what is hidden, is drawn from the
row's own text, so that a resumed job sees what it would have seen.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from orchestrator.recipe.tasks import PlainText
from orchestrator.training.cuts import note
from orchestrator.training.objectives.objective import (
    Example,
    Fields,
    all_rows,
    loss_at_labels,
    no_head,
    nothing_shown,
)
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning.forward import forward
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.prompt import Prompt
from orchestrator.tuning.rows import NO_LABEL, Row, RowBatch

HIDDEN, REPLACED = 0.15, 0.1


class RunningText:
    reads_hidden = False

    def __init__(self, task: PlainText, encoder: TextEncoder) -> None:
        self._task, self._encoder = task, encoder
        self.metrics = task.metrics
        self.head = no_head
        self.loss_sum = loss_at_labels
        self.usable, self.shown = all_rows, nothing_shown

    def example(self, fields: Fields) -> Example:
        opening, _, closing = self._encoder.frame(tuned=True)
        room = self._encoder.room(self._task.max_input_tokens, len(opening) + len(closing) + 2)
        whole = self._encoder.tokens(self._encoder.plain(self._task.input, fields))
        text = whole[:room]
        if len(text) < len(whole):
            note("input")
        draw = random.Random(zlib.crc32(repr(text).encode()))
        if self._encoder.kind == "seq2seq":
            row = self._cut(text, closing, draw)
        elif self._encoder.kind == "causal":
            row = Row([self._encoder.start, *text, self._encoder.eos], [NO_LABEL, *text, self._encoder.eos], prompt=0)
        else:
            row = self._hidden(text or [self._encoder.mask], opening, closing, draw)
        assert row.labels is not None
        return Example(row, units=sum(label != NO_LABEL for label in row.labels))

    def predict(
        self, host: BaseHost, prompt: Prompt, head: nn.Module | None, rows: Sequence[Fields], *, tuned: bool
    ) -> list[str]:
        """`<sum of losses> <tokens>` of each row: what `tasks.metrics.perplexity` reads."""
        batch = RowBatch.collate([self.example(fields).row for fields in rows], pad_id=host.pad_id)
        output = forward(host, batch, [prompt if tuned else Prompt.empty()])
        losses = cross_entropy(output.logits.float(), output.labels, reduction="none").double()
        sums = torch.zeros(len(rows), device=losses.device, dtype=torch.float64).index_add(0, output.row_of, losses)
        counts = torch.bincount(output.row_of, minlength=len(rows))
        return [f"{total!r} {count}" for total, count in zip(sums.tolist(), counts.tolist(), strict=True)]

    def references(self, rows: Sequence[Fields]) -> tuple[list[int], list[list[str]]]:
        return list(range(len(rows))), [[self._encoder.plain(self._task.input, fields)] for fields in rows]

    def _cut(self, text: list[int], closing: list[int], draw: random.Random) -> Row:
        at = draw.randrange(1, len(text)) if len(text) > 1 else len(text)
        return Row([*text[:at], *closing] or [self._encoder.start], [*text[at:], self._encoder.eos], prompt=0)

    def _hidden(self, text: list[int], opening: list[int], closing: list[int], draw: random.Random) -> Row:
        ids, labels = hide(text, range(len(text)), self._encoder.mask, draw)
        around = [NO_LABEL] * len(opening), [NO_LABEL] * len(closing)
        return Row([*opening, *ids, *closing], [*around[0], *labels, *around[1]], prompt=0)


def hide(ids: Sequence[int], places: Sequence[int], mask: int, draw: random.Random) -> tuple[list[int], list[int]]:
    """(ids with 15 % of the tokens at `places` hidden, what stood there): at least one."""
    hidden, labels = list(ids), [NO_LABEL] * len(ids)
    words = [ids[place] for place in places]
    for number in sorted(draw.sample(range(len(words)), max(1, round(HIDDEN * len(words))))):
        place, luck = places[number], draw.random()
        labels[place] = words[number]
        if luck < 1 - 2 * REPLACED:
            hidden[place] = mask
        elif luck < 1 - REPLACED:
            hidden[place] = draw.choice(words)
    return hidden, labels
