"""Rotary angles that depend on how long a row is: LongRoPE (Phi-3 128k) and dynamic NTK scaling.

transformers chooses them by the longest row of a forward, and leaves them in a buffer. A long row would turn the angles
of its neighbours, and with dynamic NTK those of the forwards to come. Here each row has the angles that it has alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.tuning.transfer import sent


def install(model: nn.Module) -> bool:
    """Give each row its own angles wherever they depend on its length; whether they do anywhere."""
    found = [module for module in model.modules() if any(map(_by_length, _kinds(module).values()))]
    for module in found:
        module.forward = partial(_angles, module, module.forward)
    return bool(found)


def alike(model: nn.Module, lengths: Tensor) -> bool:
    """Whether rows of these lengths [B] all have the same angles at the same positions."""
    return all(
        len(_regimes(module, kind, layer_type, lengths).unique()) == 1
        for module in model.modules()
        for layer_type, kind in _kinds(module).items()
        if _by_length(kind)
    )


@contextmanager
def of_rows(lengths: Tensor | None) -> Iterator[None]:
    """Forwards inside are of rows of these lengths: [B, 1], or [1, T] for tokens in one line; on the CPU.

    None: of the lengths that their positions tell. While a text is written its row keeps the angles it began with: the
    keys in the cache were turned by them.
    """
    token = _LENGTHS.set(lengths)
    try:
        yield
    finally:
        _LENGTHS.reset(token)


_LENGTHS: ContextVar[Tensor | None] = ContextVar("ptq_row_lengths", default=None)


def _kinds(module: nn.Module) -> dict[str | None, str]:
    """Type of layer (None: all are alike) -> how the module makes its angles."""
    kind = module.__dict__.get("rope_type")
    return {None: kind} if isinstance(kind, str) else dict(kind) if isinstance(kind, dict) else {}


def _by_length(kind: object) -> bool:
    """As transformers' `dynamic_rope_update` asks."""
    return isinstance(kind, str) and (kind == "longrope" or "dynamic" in kind)


@torch.no_grad()
def _angles(
    module: Any, forward: Callable[..., Any], x: Tensor, position_ids: Tensor, layer_type: str | None = None
) -> Any:
    """As the module's own forward, for each row by itself."""
    named = {} if layer_type is None else {"layer_type": layer_type}
    kind = _kinds(module)[layer_type]
    if not _by_length(kind):
        return forward(x, position_ids, **named)
    lengths = _LENGTHS.get()
    if lengths is None:
        lengths = (position_ids.amax(-1, keepdim=True) + 1).cpu()
    elif len(position_ids) > len(lengths):  # beam search repeats every row
        lengths = lengths.repeat_interleave(len(position_ids) // len(lengths), 0)
    regimes, plain = _regimes(module, kind, layer_type, lengths), inspect.unwrap(type(module).forward)
    made: Any = None
    for regime in regimes.unique().tolist():
        _forget(module, layer_type, x.device)
        forward(x, position_ids.new_full((1, 1), regime - 1), **named)  # a last position chooses the frequencies
        angles = plain(module, x, position_ids, **named)
        own = angles if isinstance(angles, tuple) else (angles,)
        here = sent((regimes == regime)[..., None], x.device)
        made = own if made is None else [torch.where(here, new, old) for new, old in zip(own, made, strict=True)]
    _forget(module, layer_type, x.device)
    return tuple(made) if len(made) > 1 else made[0]


def _regimes(module: Any, kind: str, layer_type: str | None, lengths: Tensor) -> Tensor:
    """In place of each length one that stands for all with the same angles."""
    if kind == "longrope":
        settings = module.config.rope_parameters
        short = int((settings if layer_type is None else settings[layer_type])["original_max_position_embeddings"])
        return torch.where(lengths > short, short + 1, short)
    return lengths.clamp_min(module.original_max_seq_len)


def _forget(module: Any, layer_type: str | None, device: torch.device) -> None:
    """As it was made: dynamic NTK goes on with the angles of the longest row it has seen."""
    before = "" if layer_type is None else f"{layer_type}_"
    original = getattr(module, f"{before}original_inv_freq")
    if original.device != device:  # no buffer: where the model goes it stays behind, to be copied at every forward
        original = original.to(device)
        setattr(module, f"{before}original_inv_freq", original)
    getattr(module, f"{before}inv_freq").copy_(original)
    setattr(module, f"{before}max_seq_len_cached", module.original_max_seq_len)
