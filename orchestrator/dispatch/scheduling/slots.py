"""What a worker has to give away: CPU slots or GPUs, under one interface."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from orchestrator.dispatch.running import cards
from orchestrator.dispatch.scheduling.box import Slot
from orchestrator.dispatch.scheduling.gpus import Gpu, GpuSource, Nvml, fault_of, pick, used_by
from orchestrator.errors import BadInput


class Slots(Protocol):
    @property
    def names(self) -> list[str]: ...

    @property
    def device(self) -> str:
        """cpu or cuda."""
        ...

    @property
    def model(self) -> str:
        """What steps take their time on; costs that were measured on one model say nothing about another."""
        ...

    def look(self, held: Collection[str]) -> list[Slot]:
        """Every slot as it is now. What uses a slot in `held` is a job of ours."""
        ...

    def holding(self, names: Sequence[str]) -> AbstractContextManager[list[int]]:
        """Descriptors that keep these slots from all other homes (`running.cards`). Raises `cards.Held`."""
        ...


@dataclass(frozen=True)
class CpuSlots:
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise BadInput("a worker needs at least one slot", where="--cpu-slots")

    @property
    def names(self) -> list[str]:
        return [f"cpu:{number}" for number in range(self.count)]

    @property
    def device(self) -> str:
        return "cpu"

    @property
    def model(self) -> str:
        return f"{os.cpu_count()} cores of {socket.gethostname()}"

    def look(self, held: Collection[str]) -> list[Slot]:
        return [Slot(name) for name in self.names]

    def holding(self, names: Sequence[str]) -> AbstractContextManager[list[int]]:
        return nullcontext([])


class GpuSlots:
    def __init__(self, indices: Sequence[int] | None = None, source: GpuSource | None = None) -> None:
        self._source = source or Nvml()
        self._gpus = pick(self._source.look(), indices)

    @property
    def names(self) -> list[str]:
        return [gpu.slot for gpu in self._gpus]

    @property
    def device(self) -> str:
        return "cuda"

    @property
    def model(self) -> str:
        return " and ".join(sorted({gpu.name for gpu in self._gpus}))

    def look(self, held: Collection[str]) -> list[Slot]:
        seen = {gpu.slot: gpu for gpu in self._source.look()}
        return [slot_of(name, seen.get(name), held=name in held) for name in self.names]

    def holding(self, names: Sequence[str]) -> AbstractContextManager[list[int]]:
        return cards.holding([gpu.claim for gpu in self._gpus if gpu.slot in names and gpu.claim])


def slot_of(name: str, gpu: Gpu | None, *, held: bool) -> Slot:
    if gpu is None:
        return Slot(name, fault="it does not answer")
    return Slot(name) if held else Slot(name, used_by(gpu), fault_of(gpu))
