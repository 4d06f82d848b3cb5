"""What a run's folder says of the run: who supervises it, and until when it lived."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.dispatch.running import processes
from orchestrator.paths import RunPaths, read_json
from orchestrator.registry.runs import Run

#: Seconds without a heartbeat (there is one a second) after which a supervisor that cannot be seen is taken for dead.
SILENT = 20.0
LISTENED = (
    3.0  #: seconds for which nothing was heard, where the last heartbeat is old anyway: a clock may be set forward
)


@dataclass
class Signs:
    """Which supervisors live, as one worker comes to know it."""

    clock: Callable[[], float] = time.monotonic
    _heard: dict[Path, tuple[float, float]] = field(default_factory=dict)  #: heartbeat -> its time, and since when

    def supervised(self, paths: RunPaths) -> bool:
        try:
            who: Mapping[str, Any] = read_json(paths.supervisor)
        except FileNotFoundError:
            return False
        if who["boot_id"] != processes.boot_id() or not who["pid"]:
            return False
        if _is_in_sight(who):
            return processes.alive(who["pid"], who["started"])
        return self._beats(paths)

    def others(self, paths: RunPaths) -> int | None:
        """The account whose run it is, where that is another and its processes cannot be seen from here."""
        try:
            uid = int(read_json(paths.supervisor).get("uid", os.getuid()))
        except (OSError, ValueError):
            return None
        return None if os.getuid() in {0, uid} or self.supervised(paths) else uid

    def is_out_of_sight(self, paths: RunPaths) -> bool:
        """Whether whoever supervises it has pids of its own: neither seen nor killed from here."""
        try:
            return not _is_in_sight(read_json(paths.supervisor))
        except (OSError, ValueError):
            return False

    def _beats(self, paths: RunPaths) -> bool:
        """In another container on this machine: its pids say nothing here, its heartbeat does."""
        try:
            beat = paths.heartbeat.stat().st_mtime
        except OSError:
            beat = 0.0
        now = self.clock()
        if self._heard.get(paths.heartbeat, (None, 0.0))[0] != beat:
            self._heard[paths.heartbeat] = (beat, now)
        is_old = abs(time.time() - beat) > SILENT
        return now - self._heard[paths.heartbeat][1] < (LISTENED if is_old else SILENT)


def _is_in_sight(who: Mapping[str, Any]) -> bool:
    """Whether the pids of a supervisor.json mean here what they meant to its writer."""
    return who.get("pids", processes.pid_namespace()) == processes.pid_namespace()


def ended_at(record: Mapping[str, Any]) -> float | None:
    try:
        return float(record["ended_at"])
    except (KeyError, TypeError, ValueError):
        return None


def last_sign(run: Run, paths: RunPaths) -> float:
    """When a run that left no record was last known to live."""
    try:
        return paths.heartbeat.stat().st_mtime
    except OSError:
        return run.started_at
