"""Numbers on their way to a GPU, which nobody waits for.

torch waits for all that a GPU still has to do before it copies a list, or ordinary memory, to it. From pinned memory
the GPU takes a copy by itself, in its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """`tensor` on `device`. What comes from a GPU to the CPU is waited for: it would be read too early."""
    device = torch.device(device)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor if tensor.is_contiguous() and tensor.is_pinned() else tensor.contiguous().pin_memory()
    return tensor.to(device, non_blocking=device.type != "cpu")


def numbers(values: Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """torch.tensor of a list, on `device`."""
    return sent(torch.tensor(values, dtype=dtype), device)


def each(one: Any, change: Callable[[Tensor], Tensor], *, but: Sequence[str] = ()) -> Any:
    """A tensor, or a frozen dataclass (or a tuple of them) with all its tensors, changed. `but`: fields left alone."""
    if isinstance(one, Tensor):
        return change(one)
    if isinstance(one, tuple) and one and is_dataclass(one[0]):
        return tuple(each(part, change) for part in one)
    if not is_dataclass(one) or isinstance(one, type):
        return one
    values = {field.name: getattr(one, field.name) for field in fields(one) if field.name not in but}
    return replace(one, **{name: each(value, change) for name, value in values.items()})


class Constants:
    """Lists of whole numbers that never change, sent once to each device that asks for them."""

    def __init__(self, lists: Sequence[Sequence[int]]) -> None:
        self._lists = lists
        self._sent: dict[torch.device, list[Tensor]] = {}

    def on(self, device: torch.device) -> list[Tensor]:
        if device not in self._sent:
            self._sent[device] = [numbers(one, device) for one in self._lists]
        return self._sent[device]
