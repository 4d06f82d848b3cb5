"""What every objective offers to the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from orchestrator.tuning.forward import Output
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.rows import Row

Fields = Mapping[str, str]
Words = Sequence[Sequence[list[int]]]  #: the tokens of each name's words


@dataclass(frozen=True)
class Example:
    """One training row, ready for the base."""

    row: Row
    units: int  #: what the loss is averaged over: label tokens, or 1 for a classified row
    target: int = -1  #: the label's number where the row itself does not hold it
    targets: tuple[int, ...] = ()  #: the same where there are several,
    soft: tuple[float, ...] = ()  #: the labels' probabilities, where they are learned instead of one label
    places: tuple[int, ...] = ()  #: and the tokens of the row that they are about
    words: Words = ()  #: of what the row chooses from, `target` among them


@dataclass(frozen=True)
class Share:
    """The part of a forward that belongs to one job."""

    logits: Tensor  #: [M, V] at the label positions
    labels: Tensor  #: [M]
    row_of: Tensor  #: [M] number of the row within the share
    hidden: Tensor | None  #: [rows, S, H]; of a decoder [rows, T, H]
    text_mask: Tensor  #: [rows, S]
    positions: Sequence[int]  #: of the rows in the job's batch of this step
    batch: int  #: rows of that batch, on all ranks and in all passes together
    scored: Tensor | None = None  #: [M, H]: what the base's output matrix is multiplied with
    starts: Sequence[int] = ()  #: [rows + 1], on the host: where each row's lines begin, and their number
    ends: Tensor | None = None  #: [rows]: the column of `hidden` with each row's last state

    @classmethod
    def of(cls, output: Output, first: int, positions: Sequence[int], batch: int) -> Share:
        """The rows of a fused forward from `first` on."""
        rows = len(positions)
        span = slice(first, first + rows)
        mine = slice(output.starts[first], output.starts[first + rows])
        return cls(
            logits=output.logits[mine],
            labels=output.labels[mine],
            row_of=output.row_of[mine] - first,
            hidden=None if output.hidden is None else output.hidden[span],
            text_mask=output.text_mask[span],
            positions=positions,
            batch=batch,
            scored=None if output.scored is None else output.scored[mine],
            starts=[start - mine.start for start in output.starts[first : first + rows + 1]],
            ends=None if output.ends is None else output.ends[span],
        )


class Objective(Protocol):
    reads_hidden: bool  #: wants the last hidden states instead of logits

    @property
    def metrics(self) -> Sequence[str]: ...

    @property
    def head(self) -> Callable[[BaseHost], nn.Module | None]:
        """A new trained head, or None."""

    def example(self, fields: Fields) -> Example:
        """The row as it is trained on. Raises BadData when the row cannot be used."""

    @property
    def loss_sum(self) -> Callable[[Share, Sequence[Example], nn.Module | None], Tensor]:
        """Sum of the losses over all units of the share, fp32 (its mean is taken over all ranks' units)."""

    def references(self, rows: Sequence[Fields]) -> tuple[list[int], list[list[str]]]:
        """Rows to predict (numbers) and the references of each: rows with equal inputs count once."""

    def usable(self, rows: Sequence[Fields]) -> Sequence[Fields]:
        """The rows that can be trained on. Raises BadData where there are none."""

    def shown(self, rows: Sequence[Fields]) -> list[list[int]]:
        """Rows with their answers as they stand before another row's input: tokens of each."""


def no_head(host: BaseHost) -> nn.Module | None:
    """`head` of the objectives that read the base's own scores of words."""
    return None


def loss_at_labels(share: Share, examples: Sequence[Example], head: nn.Module | None) -> Tensor:
    """`loss_sum` of those whose labels are tokens of the whole vocabulary."""
    return cross_entropy(widened(share.logits), share.labels, reduction="sum")


def all_rows(rows: Sequence[Fields]) -> Sequence[Fields]:
    """`usable` of the objectives that can learn from every row."""
    return rows


def nothing_shown(rows: Sequence[Fields]) -> list[list[int]]:
    """`shown` of the objectives whose answers are no text."""
    return []


def widened(values: Tensor) -> Tensor:
    """In fp32 at least: losses and scores of a narrow base."""
    return values if values.dtype == torch.float64 else values.float()
