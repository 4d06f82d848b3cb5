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

    def check(self) -> None:
        """Raise StopRequested on all ranks when any of them was asked. All ranks must call it equally often."""
        if self._processes.world == 1:
            asked = self.asked
        else:
            flag = torch.tensor([float(self.asked)], device=self._processes.device)
            asked = float(self._processes.sum_(flag)) > 0
        if asked:
            raise StopRequested

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
