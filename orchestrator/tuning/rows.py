"""Rows of one or several jobs, and their batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from orchestrator.tuning.transfer import each, sent

Side = Literal["left", "right"]

NO_LABEL = -100  #: torch's and transformers' mark for positions without a loss


@dataclass(frozen=True)
class Row:
    """One example.

    `ids` are token ids; the virtual token j of the row's prompt is written as the id -(j+1), at any place and any
    number of times. `prompt` is the index of the row's prompt in the list given to the forward.
    `labels`: causal and masked bases: aligned with `ids`, NO_LABEL where nothing is asked (causal: `labels[i]` is
    predicted from the positions before i, so a label at position 0 is never asked). Encoder-decoder bases: the
    decoder's targets; its inputs are the targets shifted right, or `decoder_ids` (aligned with `labels`) where given.
    `infix_at`: an infix, on causal bases. The prompt's keys and values stand before token `infix_at` of the row, and
    only that token and those after it see them; 0: before the whole row, a prefix.
    """

    ids: list[int]
    labels: list[int] | None
    prompt: int
    decoder_ids: list[int] | None = None
    infix_at: int = 0


@dataclass(frozen=True)
class RowBatch:
    """B rows padded to S tokens on one side. `labels` [B, T] and `decoder_ids` [B, T] are padded on the right always:
    their column j belongs to the j-th token of the row itself, wherever padding has moved it."""

    input_ids: Tensor  #: [B, S] long; negative: virtual tokens
    attention_mask: Tensor  #: [B, S] long; 0: padding
    prompt_index: Tensor  #: [B] long
    labels: Tensor | None  #: [B, T] long
    decoder_ids: Tensor | None  #: [B, T] long; NO_LABEL in rows that bring none
    lengths: Tensor  #: [B] long, tokens of each row
    decoder_lengths: Tensor | None  #: [B] long, `decoder_ids` of each row; 0: it has none
    side: Side  #: where the padding is
    slots: tuple[tuple[int, int], ...]  #: of each row: its prompt and how many of its virtual tokens it reaches
    infix_at: tuple[int, ...]  #: of each row
    padded: bool  #: on the host: whether any row is shorter than the longest

    @classmethod
    def collate(cls, rows: Sequence[Row], *, pad_id: int, side: Side = "right") -> RowBatch:
        if not rows:
            raise ValueError("a batch needs at least one row")
        lengths = [len(row.ids) for row in rows]
        if min(lengths) == 0:
            raise ValueError(f"row {lengths.index(0)} of the batch has no tokens")
        counts, width = torch.tensor(lengths), max(lengths)
        columns = torch.arange(width)
        real = columns >= width - counts[:, None] if side == "left" else columns < counts[:, None]
        return cls(
            input_ids=_padded([row.ids for row in rows], pad_id, side),
            attention_mask=real.long(),
            prompt_index=torch.tensor([row.prompt for row in rows]),
            labels=_padded_or_none([row.labels for row in rows], NO_LABEL),
            decoder_ids=_decoder_ids(rows, pad_id),
            lengths=counts,
            decoder_lengths=_decoder_lengths(rows),
            side=side,
            slots=tuple((row.prompt, max(0, -min(row.ids))) for row in rows),
            infix_at=tuple(row.infix_at for row in rows),
            padded=min(lengths) < width,
        )

    def to(self, device: torch.device | str) -> RowBatch:
        if self.input_ids.device == torch.device(device):
            return self
        moved: RowBatch = each(self, lambda tensor: sent(tensor, device))
        return moved

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def starts(self) -> Tensor:
        """[B]: the column of each row's first token."""
        return self.input_ids.shape[1] - self.lengths if self.side == "left" else torch.zeros_like(self.lengths)

    @property
    def ends(self) -> Tensor:
        """[B]: the column of each row's last state: its last token's, or that of its last own decoder input."""
        own = self.starts + self.lengths - 1
        if self.decoder_lengths is None:
            return own
        return torch.where(self.decoder_lengths > 0, self.decoder_lengths - 1, own)

    def on_side(self, side: Side) -> RowBatch:
        """The same rows with their padding on `side`."""
        if side == self.side:
            return self
        columns = self.columns_from(side)
        return replace(
            self,
            input_ids=self.input_ids.gather(1, columns),
            attention_mask=self.attention_mask.gather(1, columns),
            side=side,
        )

    def trimmed(self) -> RowBatch:
        """Without what stands behind each row's last label, on a causal base; padded on the right.

        The last label is predicted from the token before it, so its own token goes too.
        """
        assert self.labels is not None
        assert self.side == "right"
        asked = (self.labels != NO_LABEL).long() * torch.arange(self.labels.shape[1], device=self.labels.device)
        lengths = torch.minimum(asked.amax(1).clamp_min(1), self.lengths)
        width = int(lengths.max())
        mask = (torch.arange(width, device=lengths.device) < lengths[:, None]).long()
        padded = int(lengths.min()) < width
        return replace(self, input_ids=self.input_ids[:, :width], attention_mask=mask, lengths=lengths, padded=padded)

    def columns_from(self, side: Side) -> Tensor:
        """[B, S]: for each column with the padding on `side`, the column it has here."""
        width = self.input_ids.shape[1]
        padding = width - self.lengths
        shift = padding * ((self.side == "left") - (side == "left"))
        return (torch.arange(width, device=padding.device)[None] + shift[:, None]) % width

    @property
    def text_mask(self) -> Tensor:
        """[B, S] bool: true tokens, neither padding nor virtual."""
        return (self.input_ids >= 0) & (self.attention_mask == 1)


def segments(ids: Tensor, separator: int) -> Tensor:
    """[B, S] ids -> 0 up to a row's first separator, that one included; 1 behind it (Devlin et al. 2019, §3)."""
    parted = (ids == separator).long()
    return (parted.cumsum(-1) - parted).clamp_max(1)


def _padded(lists: Sequence[Sequence[int]], fill: int, side: Side = "right") -> Tensor:
    """[B, longest] long."""
    width = max(map(len, lists))
    padding = [[fill] * (width - len(values)) for values in lists]
    pairs = zip(lists, padding, strict=True)
    return torch.tensor([[*pad, *values] if side == "left" else [*values, *pad] for values, pad in pairs])


def _padded_or_none(lists: Sequence[Sequence[int] | None], fill: int) -> Tensor | None:
    if all(values is None for values in lists):
        return None
    return _padded([values or [] for values in lists], fill)


def _decoder_ids(rows: Sequence[Row], pad_id: int) -> Tensor | None:
    """As wide as the labels of rows that bring none, whose own inputs are those labels."""
    if all(row.decoder_ids is None for row in rows):
        return None
    width = max(len(row.labels or ()) if row.decoder_ids is None else len(row.decoder_ids) for row in rows)
    return _padded([[NO_LABEL] * width if row.decoder_ids is None else row.decoder_ids for row in rows], pad_id)


def _decoder_lengths(rows: Sequence[Row]) -> Tensor | None:
    if all(row.decoder_ids is None for row in rows):
        return None
    return torch.tensor([len(row.decoder_ids or ()) for row in rows])
