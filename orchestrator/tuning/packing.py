"""Rows without padding: the tokens of all rows in one line, padded to rows only where they look at each other.

All layers of a base but attention treat each token for itself, so they are given [1, T] tokens. Attention is given rows
again: for each row the tokens it sees, gathered from the line, rows of like length together. On a causal base, what all
rows of a prompt begin with (its virtual tokens, a template's words) depends on nothing of the row: it is in the line
once, every row gathers it, and the gradients of all rows add up in it.

A row's padding repeats the row's own last token, never another row's: 0 times a neighbour's NaN would be NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from orchestrator.tuning.prompt import Prompt
from orchestrator.tuning.rows import RowBatch

#: Rows are grouped by length while each further group saves so many cells of attention (a cell: one token looking at
#: one token). A group costs about ten small operations a layer, 100 microseconds.
_CELLS_WORTH_A_GROUP = 30_000

Attend = Callable[..., tuple[Tensor, Any]]


@dataclass(frozen=True)
class Group:
    """R rows of like length in attention, W columns wide."""

    take: Tensor  #: [R, W]: where a column's key and value are: a token of the line, or T + a column of the prefixes
    ask: Tensor  #: [R, W]: the token whose query a column is; any of the row's own where it is a prefix's
    seen: Tensor | None  #: [R, 1, 1, W] bool: bases that look both ways: columns that exist; None: all, or causal


@dataclass(frozen=True)
class Line:
    """B rows as one line of T tokens."""

    ids: Tensor  #: [T]
    prompts: Tensor  #: [T]: number of the token's prompt
    columns: Tensor  #: [T]: the token's place in its row
    rows: Tensor  #: [T]: its row, the first of those that share it
    at: Tensor  #: [B, S]: the token that stands at a row's column; padding: the row's last
    home: Tensor  #: [T]: where a token's output is among all groups' columns
    groups: tuple[Group, ...]
    causal: bool

    def to(self, device: torch.device) -> Line:
        if self.ids.device == device:
            return self
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, groups=tuple(_moved(group, device) for group in self.groups), **moved)

    @classmethod
    def of(cls, batch: RowBatch, prefixes: Sequence[int], *, causal: bool, share: bool) -> Line:
        """`batch`: on the CPU, padded on the right; `prefixes`: length of each prompt's keys and values."""
        width = batch.input_ids.shape[1]
        columns = torch.arange(width)
        real = columns < batch.lengths[:, None]
        number_of_row = torch.arange(len(batch))
        if share and causal:
            first, lead = _shared(batch, len(prefixes))
        else:
            first, lead = number_of_row, torch.zeros_like(batch.lengths)
        own = real & ((columns >= lead[:, None]) | (first == number_of_row)[:, None])
        number = (own.flatten().cumsum(0) - 1).view_as(own)
        at = torch.where(columns < lead[:, None], number[first], number)
        at = at.gather(1, torch.minimum(columns, batch.lengths[:, None] - 1))
        infix = torch.tensor(batch.infix_at)
        before = torch.tensor(list(prefixes))[batch.prompt_index]
        shifted = columns + before[:, None] * (columns >= infix[:, None])
        starts, groups = _groups(at, int(number[-1, -1]) + 1, batch, prefixes, infix, before, causal)
        rows, places = own.nonzero(as_tuple=True)
        return cls(
            ids=batch.input_ids[own],
            prompts=batch.prompt_index[rows],
            columns=places,
            rows=rows,
            at=at,
            home=(starts[:, None] + shifted)[own],
            groups=groups,
            causal=causal,
        )


@dataclass
class Packed:
    """The line of one forward and its prompts' keys and values: what the attention function is told."""

    line: Line
    prefixes: tuple[Tensor, ...]  #: keys and values of each layer in turn, [P, kv_heads * head_dim]; none: empty

    @classmethod
    def of(cls, line: Line, prompts: Sequence[Prompt], dtype: torch.dtype) -> Packed:
        """`dtype`: the base's."""
        tables = [tensor.to(line.ids.device, dtype) for prompt in prompts for tensor in prompt.keys_values.values()]
        if not tables:
            return cls(line, ())
        # [L, 2, kv_heads, n, head_dim] each. Taken apart once: the gradient of a slice is a whole table.
        columns = torch.cat([table.transpose(2, 3).flatten(3) for table in tables], dim=2)
        return cls(line, columns.flatten(0, 1).unbind(0))

    def attention(
        self, attend: Attend, layer: int, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]
    ) -> Tensor:
        """[1, heads, T, d] queries and [1, kv_heads, T, d] keys and values -> [1, T, heads, d]."""
        head_dim, outputs = query.shape[3], []
        queries, keys, values = (tensor[0].transpose(0, 1).flatten(1) for tensor in (query, key, value))
        if self.prefixes:
            keys = torch.cat([keys, self.prefixes[2 * layer].to(keys.dtype)])
            values = torch.cat([values, self.prefixes[2 * layer + 1].to(values.dtype)])
        options["is_causal"] = self.line.causal
        for group in self.line.groups:
            rows = [_taken(t, i, head_dim) for t, i in ((queries, group.ask), (keys, group.take), (values, group.take))]
            output, _ = attend(*rows, group.seen, **options)
            outputs.append(output.flatten(0, 1).flatten(1))
        together = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return functional.embedding(self.line.home, together).view(1, -1, query.shape[1], value.shape[3])


def _taken(source: Tensor, index: Tensor, head_dim: int) -> Tensor:
    """[T, heads * d] and [R, W] -> [R, heads, W, d]."""
    # Not index_select: the backward of an embedding adds up in a fixed order on CUDA too.
    return functional.embedding(index, source).unflatten(2, (-1, head_dim)).transpose(1, 2)


def _shared(batch: RowBatch, prompts: int) -> tuple[Tensor, Tensor]:
    """([B] first row of each row's prompt, [B] columns with which all rows of the prompt begin)."""
    count = len(batch)
    first = torch.full((prompts,), count).scatter_reduce(0, batch.prompt_index, torch.arange(count), "amin")
    of_row = first[batch.prompt_index]
    alike = (batch.input_ids == batch.input_ids[of_row]).long().cumprod(1).sum(1)
    alike = torch.minimum(alike, batch.lengths)
    # What stands before an infix does not see it; in a row without one all do.
    infix = torch.tensor(batch.infix_at)
    alike = torch.where(infix > 0, torch.minimum(alike, infix), alike) * ((infix > 0) == (infix[of_row] > 0))
    lead = torch.full((prompts,), batch.input_ids.shape[1]).scatter_reduce(0, batch.prompt_index, alike, "amin")
    return of_row, lead[batch.prompt_index]


def _groups(
    at: Tensor,
    tokens: int,
    batch: RowBatch,
    prefixes: Sequence[int],
    infix: Tensor,
    before: Tensor,
    causal: bool,
) -> tuple[Tensor, tuple[Group, ...]]:
    """([B] where a row's first column is among all groups' columns, the groups)."""
    lengths = batch.lengths + before
    first_column = torch.tensor([sum(prefixes[:i]) for i in range(len(prefixes))])[batch.prompt_index] + tokens
    starts, groups, offset = torch.zeros_like(lengths), [], 0
    for rows in _alike(lengths):
        width = int(lengths[rows].max())
        columns = torch.arange(width)
        relative = columns - infix[rows, None]
        in_prefix = (relative >= 0) & (relative < before[rows, None])
        token = columns - before[rows, None] * (relative >= before[rows, None])
        ask = at[rows].gather(1, token.clamp_max(at.shape[1] - 1).expand(len(rows), -1))
        take = torch.where(in_prefix, first_column[rows, None] + relative, ask)
        exists = columns < lengths[rows, None]
        seen = None if causal or bool(exists.all()) else exists[:, None, None]
        groups.append(Group(take, ask, seen))
        starts[rows] = offset + torch.arange(len(rows)) * width
        offset += len(rows) * width
    return starts, tuple(groups)


def _alike(lengths: Tensor) -> list[Tensor]:
    """Rows by length, longest first: a new group where it saves enough."""
    order = lengths.argsort(descending=True, stable=True)
    sizes = lengths[order].tolist()
    cuts, start = [0], 0
    for i in range(1, len(sizes)):
        if (len(sizes) - i) * (sizes[start] ** 2 - sizes[i] ** 2) > _CELLS_WORTH_A_GROUP and sizes[i] <= 0.75 * sizes[
            start
        ]:
            cuts.append(i)
            start = i
    return [order[a:b] for a, b in zip(cuts, [*cuts[1:], len(sizes)], strict=True)]


def _moved(group: Group, device: torch.device) -> Group:
    take, ask = group.take.to(device, non_blocking=True), group.ask.to(device, non_blocking=True)
    return Group(take, ask, None if group.seen is None else group.seen.to(device, non_blocking=True))
