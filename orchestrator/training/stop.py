"""The wish to stop: SIGTERM sets it, and all ranks act on it at the same step boundary."""

from __future__ import annotations

import signal
from types import FrameType

import torch

from orchestrator.training.distributed import Processes

STOPPED_EXIT_CODE = 75  # EX_TEMPFAIL: left at a step boundary, may be continued


class StopRequested(Exception):
    """Every rank has agreed to leave here."""


class StopFlag:
    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self.asked = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def check(self, note: int = 0) -> int:
        """Raise StopRequested on all ranks when any of them was asked; else the first rank's `note`, on all ranks.

        All ranks must call it equally often. The note travels with the wish: one all-reduce of two numbers.
        """
        mine = [float(self.asked), float(note if self._processes.first else 0)]
        if self._processes.world > 1:
            mine = self._processes.sum_(torch.tensor(mine, device=self._processes.device)).tolist()
        if mine[0] > 0:
            raise StopRequested
        return int(mine[1])

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
