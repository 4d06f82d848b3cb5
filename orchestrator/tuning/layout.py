"""Where the tokens of a batch stand when its rows are one line: found on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.tuning import rotary
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.packing import Line
from orchestrator.tuning.rows import NO_LABEL, RowBatch, segments


@dataclass(frozen=True)
class Layout:
    """Where all tokens of a batch stand in the line, on the CPU: a matter of its rows, not of what prompts hold."""

    line: Line
    positions: Tensor  #: [T]
    row_of: Tensor  #: [M]: of each label
    labels: Tensor  #: [M]
    asked: Tensor  #: [M]: the token of the line that predicts it
    starts: list[int]  #: [B + 1]: where each row's labels begin
    lengths: Tensor | None  #: [1, T]: of the token's row, where rotary angles depend on it
    text_mask: Tensor  #: [B, S] of the caller's batch
    segments: Tensor | None  #: [T]: which of two texts the token is in, where the base asks


def lay_out(host: BaseHost, rows: RowBatch, batch: RowBatch, prefixes: Sequence[int]) -> Layout:
    """`rows`: as the base sees them; `batch`: as the caller gave them; `prefixes`: how many keys each prompt brings."""
    rows = rows.to("cpu")  # nothing here waits for a GPU
    fast, lengths = host.fast, row_lengths(host, batch, prefixes)
    share = fast.share and (lengths is None or rotary.alike(host.model, lengths))
    ragged = fast.varlen and host.ragged
    line = Line.of(rows, prefixes, causal=host.kind == "causal", share=share, once=fast.once, ragged=ragged)
    row_of, columns, labels = labelled(host, rows)
    positions = line.columns
    if any(prefixes):  # what stands before an infix keeps its place
        infix = torch.tensor(rows.infix_at)[line.rows]
        positions = positions + torch.tensor(prefixes)[line.prompts] * (positions >= infix)
    return Layout(
        line=line,
        positions=positions + host.first_position,
        row_of=row_of,
        labels=labels,
        asked=line.at[row_of, columns],
        starts=starts_of(row_of, len(rows)),
        lengths=None if lengths is None else lengths[line.rows, 0][None],
        text_mask=batch.text_mask,
        segments=_segments(host, rows, line),
    )


def _segments(host: BaseHost, rows: RowBatch, line: Line) -> Tensor | None:
    return None if host.separator is None else segments(rows.input_ids, host.separator)[line.rows, line.columns]


def seen_rows(host: BaseHost, batch: RowBatch, *, hidden: bool) -> RowBatch:
    """The rows as the base sees them: nothing that the loss does not need."""
    rows = batch.on_side("right")
    if host.fast.trim and host.kind == "causal" and rows.labels is not None and not hidden:
        return rows.trimmed()
    return rows


def labelled(host: BaseHost, batch: RowBatch) -> tuple[Tensor, Tensor, Tensor]:
    """([M] rows, [M] columns of the positions that predict, [M] labels)."""
    if batch.labels is None:
        nothing = batch.prompt_index.new_zeros(0)
        return nothing, nothing, nothing
    row_of, own = (batch.labels != NO_LABEL).nonzero(as_tuple=True)
    if host.kind == "causal":
        row_of, own = row_of[own > 0], own[own > 0]
    labels = batch.labels[row_of, own]
    if host.kind == "seq2seq":
        return row_of, own, labels
    return row_of, own + batch.starts[row_of] - int(host.kind == "causal"), labels


def starts_of(row_of: Tensor, rows: int) -> list[int]:
    return [0, *torch.bincount(row_of, minlength=rows).cumsum(0).tolist()]


def row_lengths(host: BaseHost, batch: RowBatch, prefixes: Sequence[int]) -> Tensor | None:
    """[B, 1] on the CPU: how long each row of the caller's batch is, its prefix included; None where nobody asks."""
    if not host.turns_by_length:
        return None
    before = torch.tensor(list(prefixes))
    return (batch.lengths.cpu() + before[batch.prompt_index.cpu()])[:, None]


def window(host: BaseHost) -> float:
    """How many tokens of a row see each other in every layer."""
    config = host.model.config.get_text_config()
    limits = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((limit for limit in limits if limit), default=float("inf"))
