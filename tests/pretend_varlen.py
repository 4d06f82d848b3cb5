"""What torch's flash kernel for spans of unlike sizes computes and refuses, written out span by span in fp64.

The pretended device puts it below `torch.nn.attention.varlen`: checks, defaults and gradients are then torch's own.
From FlashAttention's mha_varlen_fwd: half precision, heads of at most 256 numbers in multiples of 8, sizes in int32,
the causal mask aligned at the end of keys.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Tensor,
    keys: Tensor,
    longest_query: int,
    longest_key: int,
    is_causal: bool,
    scale: float | None,
    window: list[int],
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """(output [T, heads, d], logarithm of the sum [heads, T], state of the dropout that there is none of)."""
    _check(query, key, value, queries, keys, longest_query, longest_key)
    assert is_causal, "we never ask otherwise"
    assert window == [-1, 0]
    output, total = _attended(query.double(), key.double(), value.double(), queries, keys, scale)
    return output.to(query.dtype), total.float(), torch.zeros(2, dtype=torch.uint64)


def backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    total: Tensor,
    queries: Tensor,
    keys: Tensor,
    longest_query: int,
    longest_key: int,
    is_causal: bool,
    state: Tensor,
    scale: float | None = None,
    window: list[int] | None = None,
) -> tuple[Tensor, ...]:
    _check(query, key, value, queries, keys, longest_query, longest_key)
    assert gradient.shape == output.shape == query.shape
    with torch.enable_grad():
        inputs = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
        again, _ = _attended(*inputs, queries, keys, scale)
        found = torch.autograd.grad(again, inputs, gradient.double())
    return tuple(one.to(query.dtype) for one in found)


KERNELS: dict[str, Callable[..., Any]] = {"_varlen_attn": forward, "_varlen_attn_backward": backward}


def _attended(
    query: Tensor, key: Tensor, value: Tensor, queries: Tensor, keys: Tensor, scale: float | None
) -> tuple[Tensor, Tensor]:
    repeats = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
    outputs, totals = [], []
    for (a, b), (c, d) in zip(pairwise(queries.tolist()), pairwise(keys.tolist()), strict=True):
        scores = torch.einsum("qhd,khd->hqk", query[a:b], key[c:d]) * (scale or query.shape[2] ** -0.5)
        ahead = torch.ones(b - a, d - c).triu(d - c - (b - a) + 1).bool()
        scores = scores.masked_fill(ahead, float("-inf"))
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[c:d]))
        totals.append(scores.logsumexp(-1))
    return torch.cat(outputs), torch.cat(totals, dim=1)


def _check(
    query: Tensor, key: Tensor, value: Tensor, queries: Tensor, keys: Tensor, longest_query: int, longest_key: int
) -> None:
    for tensor in (query, key, value):
        assert tensor.dtype in (torch.float16, torch.bfloat16), "FlashAttention only supports fp16 and bf16"
        assert tensor.dtype == query.dtype
        assert tensor.dim() == 3
        assert tensor.stride(-1) == 1, "the last dimension must be contiguous"
    assert query.shape[2] % 8 == 0
    assert query.shape[2] <= 256
    assert query.shape[1] % key.shape[1] == 0
    assert key.shape == value.shape
    for begins, tensor, longest in ((queries, query, longest_query), (keys, key, longest_key)):
        assert begins.dtype == torch.int32, "cu_seqlens must have dtype int32"
        assert begins.is_contiguous()
        assert (int(begins[0]), int(begins[-1])) == (0, len(tensor))
        assert int(begins.diff().max()) == longest
