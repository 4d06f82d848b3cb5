"""Attention over spans of unlike sizes in one call, without padding: torch's flash kernel on a GPU.

Queries stand in one line [T, heads, d], span after span; the keys and values that a span sees, its own last, in another
[K, kv_heads, d]. A query sees its span's context and what is not ahead of it: the causal mask, aligned at the end.

The kernel takes half precision on a GPU alone. What it must compute is written out span by span in `one_by_one`, which
tests compare with the groups of `packing`, and with which `works` compares the kernel before it is trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention

_HALVES = (torch.float16, torch.bfloat16)
_TOLERANCE = 2e-2  #: of the largest number: two roundings of bfloat16


@dataclass(frozen=True)
class Ragged:
    """N spans, one after another."""

    take: Tensor  #: [K]: where each key and value is: a token of the line, or T + a column of the prefixes
    queries: Tensor  #: [N + 1] int32: where each span's queries begin, and their number
    keys: Tensor  #: [N + 1] int32: the same of its keys
    sizes: tuple[tuple[int, int], ...]  #: of each span on the host: queries, keys

    @classmethod
    def of(cls, take: Tensor, asked: Sequence[int], seen: Sequence[int]) -> Ragged:
        def begins(sizes: Sequence[int]) -> Tensor:
            return functional.pad(torch.tensor(sizes).cumsum(0), (1, 0)).to(torch.int32)

        return cls(take, begins(asked), begins(seen), tuple(zip(asked, seen, strict=True)))

    @property
    def longest(self) -> tuple[int, int]:
        return max(q for q, _ in self.sizes), max(k for _, k in self.sizes)


def attention(
    ragged: Ragged,
    attend: Callable[..., tuple[Tensor, Any]],
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    head_dim: int,
    options: dict[str, Any],
) -> Tensor:
    """[T, heads * d] queries and [K, kv_heads * d] keys and values in line -> [T, heads, d].

    `attend`: the attention of rows, for what the kernel cannot do (capped scores, sinks).
    """
    # Not index_select: the backward of an embedding adds up in a fixed order on CUDA too.
    keys, values = (functional.embedding(ragged.take, tensor) for tensor in (keys, values))
    query, key, value = (tensor.unflatten(1, (-1, head_dim)) for tensor in (queries, keys, values))
    special = any(options.get(name) is not None for name in ("softcap", "s_aux"))
    if special or not _is_taken(query.device, query.dtype):
        return one_by_one(ragged, attend, query, key, value, options)
    return _kernel(ragged, query, key, value, options.get("scaling"))


def one_by_one(
    ragged: Ragged,
    attend: Callable[..., tuple[Tensor, Any]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    options: dict[str, Any],
) -> Tensor:
    """The same, span by span with a mask: [T, heads, d]."""
    outputs, q, k = [], 0, 0
    for asked, seen in ragged.sizes:
        rows = [
            tensor.transpose(0, 1)[None] for tensor in (query[q : q + asked], key[k : k + seen], value[k : k + seen])
        ]
        mask = torch.ones(asked, seen, dtype=torch.bool, device=query.device).tril(seen - asked)
        output, _ = attend(*rows, mask[None, None], **{**options, "is_causal": False})
        outputs.append(output[0])
        q, k = q + asked, k + seen
    return torch.cat(outputs)


@torch.enable_grad()
def works(device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int) -> bool:
    """Whether the kernel is here and computes what `one_by_one` does, with gradients: found by asking it."""
    if not _is_taken(device, dtype):
        return False
    ragged = Ragged.of(torch.arange(30, device=device), [5, 3, 9], [5, 8, 17])
    ragged = Ragged(ragged.take, ragged.queries.to(device), ragged.keys.to(device), ragged.sizes)
    generator = torch.Generator(device).manual_seed(0)
    shapes = ((17, heads, head_dim), (30, kv_heads, head_dim), (30, kv_heads, head_dim))
    made = [torch.randn(shape, device=device, dtype=dtype, generator=generator).requires_grad_() for shape in shapes]
    query, key, value = made
    try:
        found = _kernel(ragged, query, key, value, None)
        told = torch.autograd.grad(found.float().square().sum(), made)
    except (ImportError, RuntimeError, ValueError, TypeError):
        return False
    expected = one_by_one(ragged, _attend, query, key, value, {})
    wanted = torch.autograd.grad(expected.float().square().sum(), made)
    pairs = zip((found, *told), (expected, *wanted), strict=True)
    return all(bool((a - b).abs().max() <= _TOLERANCE * b.abs().max()) for a, b in pairs)


def _is_taken(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cuda" and dtype in _HALVES


def _kernel(ragged: Ragged, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # 55 ms, for a GPU alone, and not in torch before 2.10

    longest_query, longest_key = ragged.longest
    output = varlen_attn(
        query,
        key,
        value,
        ragged.queries,
        ragged.keys,
        longest_query,
        longest_key,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)
    return output


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **_: Any) -> tuple[Tensor, None]:
    found = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=query.shape[1] != key.shape[1])
    return found.transpose(1, 2), None
