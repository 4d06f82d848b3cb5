"""Rows without padding: the tokens of all rows in one line, padded to rows only where they look at each other.

All layers of a base but attention treat each token for itself, so they are given [1, T] tokens. Attention is given
spans: the tokens of a row that ask, and all that they see, gathered from the line; spans of like size together, or on a
GPU all of them in one call without any padding (`varlen`). On a causal base, what all rows of a prompt begin with (its
virtual tokens, a template's words) depends on nothing of the row: it is in the line once and asks once, every row
gathers its keys and values, and the gradients of all rows add up in it.

A span's padding repeats the span's own tokens, never another row's: 0 times a neighbour's NaN would be NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from orchestrator.tuning import varlen
from orchestrator.tuning.prompt import Prompt
from orchestrator.tuning.rows import RowBatch
from orchestrator.tuning.transfer import each, sent

#: Spans are grouped by size while each further group saves so many cells of attention (a cell: one token looking at
#: one token). A group costs about ten small operations a layer, 100 microseconds.
_CELLS_WORTH_A_GROUP = 30_000
#: What rows share asks once where it is at least a quarter of the longest row's own tokens. Below, what the mask costs
#: (10 % of attention on a CPU) is more than what fewer questions save.
_WORTH_A_CUT = 4

Attend = Callable[..., tuple[Tensor, Any]]


class Span(NamedTuple):
    """Tokens of one row that ask together; each sees those before it in the span, and its context."""

    row: int
    first: int  #: column; those before it are context
    end: int
    prefix: int  #: columns of the prompt's keys and values that are context too
    owned: int  #: the first column whose answer is taken from here; those before it another row asks for too

    @property
    def asked(self) -> int:
        return self.end - self.first

    @property
    def context(self) -> int:
        return self.prefix + self.first

    @property
    def cells(self) -> int:
        return self.asked * (self.asked + self.context)


@dataclass(frozen=True)
class Group:
    """R spans of like size in attention: W columns wide, of which the last Q ask."""

    take: Tensor  #: [R, W]: where a column's key and value are: a token of the line, or T + a column of the prefixes
    ask: Tensor  #: [R, Q]: the token whose query a column is
    seen: (
        Tensor | None
    )  #: [R or 1, 1, Q or 1, W] bool: what exists and is not ahead; None: all, or all that is not ahead


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
    ragged: varlen.Ragged | None  #: instead of groups: all spans in one call
    causal: bool

    def to(self, device: torch.device) -> Line:
        """All that a forward asks for; `columns` and `rows` only the layout does."""
        if self.ids.device == device:
            return self
        moved: Line = each(self, lambda tensor: sent(tensor, device), but=("columns", "rows"))
        return moved

    @classmethod
    def of(
        cls,
        batch: RowBatch,
        prefixes: Sequence[int],
        *,
        causal: bool,
        share: bool,
        once: bool = True,
        ragged: bool = False,
    ) -> Line:
        """`batch`: on the CPU, padded on the right; `prefixes`: length of each prompt's keys and values.

        `once`: what rows share asks once where that pays; `ragged`: for one call without padding, causal bases only.
        """
        columns = torch.arange(batch.input_ids.shape[1])
        number_of_row = torch.arange(len(batch))
        if share and causal:
            first, lead = _shared(batch, len(prefixes))
        else:
            first, lead = number_of_row, torch.zeros_like(batch.lengths)
        real = columns < batch.lengths[:, None]
        own = real & ((columns >= lead[:, None]) | (first == number_of_row)[:, None])
        number = (own.flatten().cumsum(0) - 1).view_as(own)
        at = torch.where(columns < lead[:, None], number[first], number)
        at = at.gather(1, torch.minimum(columns, batch.lengths[:, None] - 1))
        spans = _spans(batch, prefixes, first.tolist(), lead.tolist(), once=once, always=ragged)
        tokens = int(number[-1, -1]) + 1
        table = _Table(at, batch.prompt_index.tolist(), [tokens + sum(prefixes[:i]) for i in range(len(prefixes))])
        home, groups = (columns, ()) if ragged else _groups(spans, table, tokens, causal)
        rows, places = own.nonzero(as_tuple=True)
        return cls(
            ids=batch.input_ids[own],
            prompts=batch.prompt_index[rows],
            columns=places,
            rows=rows,
            at=at,
            home=home,
            groups=groups,
            ragged=_ragged(spans, table) if ragged else None,
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
        queries, keys, values = (tensor[0].transpose(0, 1).flatten(1) for tensor in (query, key, value))
        if self.prefixes:
            keys = torch.cat([keys, self.prefixes[2 * layer].to(keys.dtype)])
            values = torch.cat([values, self.prefixes[2 * layer + 1].to(values.dtype)])
        if self.line.ragged is not None:
            return varlen.attention(self.line.ragged, attend, queries, keys, values, query.shape[3], options)[None]
        head_dim, outputs = query.shape[3], []
        for group in self.line.groups:
            rows = [_taken(t, i, head_dim) for t, i in ((queries, group.ask), (keys, group.take), (values, group.take))]
            options["is_causal"] = self.line.causal and group.seen is None
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


@dataclass(frozen=True)
class _Table:
    """Where everything that a span gathers stands."""

    at: Tensor  #: [B, S]
    prompts: list[int]  #: of each row
    prefixes: list[int]  #: where each prompt's keys and values begin


def _spans(
    batch: RowBatch, prefixes: Sequence[int], first: list[int], lead: list[int], *, once: bool, always: bool
) -> list[Span]:
    """Of all rows, in the order of the line."""
    lengths, prompts = batch.lengths.tolist(), batch.prompt_index.tolist()
    longest = [0] * len(prefixes)
    for prompt, length, shared in zip(prompts, lengths, lead, strict=True):
        longest[prompt] = max(longest[prompt], length - shared)
    spans = []
    for row, (prompt, length, shared, infix) in enumerate(zip(prompts, lengths, lead, batch.infix_at, strict=True)):
        cut = always or (once and _WORTH_A_CUT * shared >= longest[prompt])
        asked_elsewhere = 0 if first[row] == row else shared
        start = asked_elsewhere if cut or infix else 0
        cuts = {start, *(column for column in (shared if cut else 0, infix) if start < column < length), length}
        for a, e in pairwise(sorted(cuts)):
            spans.append(Span(row, a, e, prefixes[prompt] if a >= infix else 0, max(a, asked_elsewhere)))
    return spans


def _groups(spans: Sequence[Span], table: _Table, tokens: int, causal: bool) -> tuple[Tensor, tuple[Group, ...]]:
    """([T] where a token's output is among all groups' columns, the groups)."""
    home, groups, offset = torch.zeros(tokens, dtype=torch.long), [], 0
    for alike in _alike(spans):
        take, ask, real = _gathered(alike, table)
        size, asked = ask.shape
        owned = torch.tensor([span.owned - span.first for span in alike])
        answered = real[:, -asked:] & (torch.arange(asked) >= owned[:, None])
        home[ask[answered]] = offset + torch.arange(size * asked).view(size, asked)[answered]
        groups.append(Group(take, ask, _seen(real, asked, causal)))
        offset += size * asked
    return home, tuple(groups)


def _gathered(spans: Sequence[Span], table: _Table) -> tuple[Tensor, Tensor, Tensor]:
    """([R, W] keys, [R, Q] queries, [R, W] whether a column exists): contexts on the left, padded on their left."""
    rows, first, asked, prefix = (
        torch.tensor(column)[:, None]
        for column in zip(*((span.row, span.first, span.asked, span.prefix) for span in spans), strict=True)
    )
    at = table.at[rows[:, 0]]
    columns = torch.arange(int(asked.max()))
    ask = at.gather(1, first + torch.minimum(columns, asked - 1))
    width = max(span.context for span in spans)
    place = torch.arange(width) - (width - first - prefix)
    begins = torch.tensor([table.prefixes[table.prompts[span.row]] for span in spans])[:, None]
    before = at.gather(1, (place - prefix).clamp(0, at.shape[1] - 1))
    context = torch.where(place < 0, ask[:, :1], torch.where(place < prefix, begins + place, before))
    return torch.cat([context, ask], 1), ask, torch.cat([place >= 0, columns < asked], 1)


def _seen(real: Tensor, asked: int, causal: bool) -> Tensor | None:
    """The mask of a group, from which of its columns exist."""
    if not causal:
        return None if bool(real.all()) else real[:, None, None]
    context = real[:, : real.shape[1] - asked]
    if not context.shape[1]:
        return None
    if bool(context.all()):
        context = context[:1]
    ahead = torch.ones(asked, asked, dtype=torch.bool).tril().expand(len(context), -1, -1)
    return torch.cat([context[:, None].expand(-1, asked, -1), ahead], 2)[:, None]


def _ragged(spans: Sequence[Span], table: _Table) -> varlen.Ragged:
    take, _, real = _gathered(spans, table)
    asked = [span.asked for span in spans]
    seen = [span.asked + span.context for span in spans]
    return varlen.Ragged.of(take[real], asked, seen)


def _alike(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans by size, largest first: a new group where it saves enough."""
    order = sorted(spans, key=lambda span: (-span.asked, -span.context))
    groups: list[list[Span]] = []
    for i, span in enumerate(order):
        if groups:
            saved = groups[-1][0].cells - span.cells
            # Three quarters as long each way at most, or the next few would make a group of their own again.
            if (len(order) - i) * saved <= _CELLS_WORTH_A_GROUP or span.cells > 0.5625 * groups[-1][0].cells:
                groups[-1].append(span)
                continue
        groups.append([span])
    return groups
