"""What a supervisor holds its run to: its time and its host memory. Standard library only."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from contextlib import AbstractContextManager

from orchestrator.dispatch.running import memory, processes
from orchestrator.jobspec import RunSpec
from orchestrator.paths import RunPaths


class TimeLimit:
    """When a run must have ended, whatever its program does: the latest moment at which one of its jobs must.

    Each job's own limit is kept by the program itself, at a step boundary and for that job alone. This is for a program
    that hangs; so where jobs may join, it waits `grace_seconds` longer. A job without a limit makes the run one
    without. Jobs that joined are known by the tickets that the program has taken.
    """

    def __init__(self, paths: RunPaths, spec: RunSpec) -> None:
        self._began = time.monotonic()
        self._ends: dict[int, float] = {}  #: job -> when its time is over
        self._joined = paths.joined
        self._patience = 0.0 if spec.fuse_key is None else spec.grace_seconds
        self._seen: set[str] = set()
        self._looked = -1
        self._at: float | None = math.inf  # None: never
        self._extend(spec.time_limit_seconds)

    def over(self) -> bool:
        self._look()
        return self._at is not None and time.monotonic() > self._at

    def expired(self) -> list[int]:
        now = time.monotonic()
        return sorted(job for job, end in self._ends.items() if now >= end)

    def _extend(self, seconds: float | None) -> None:
        """For a job that starts now."""
        if seconds is None or self._at is None:
            self._at = None
            return
        end = time.monotonic() + seconds + self._patience
        self._at = end if self._at == math.inf else max(self._at, end)

    def _look(self) -> None:
        try:
            changed = self._joined.stat().st_mtime_ns
            if changed == self._looked:
                return
            first = self._looked == -1 and time.monotonic() - self._began < 1.0  # those with which the run began
            for path in set(self._joined.iterdir()):
                if path.name not in self._seen:
                    ticket = json.loads(path.read_bytes())
                    seconds = ticket["time_limit_seconds"]
                    self._extend(seconds)
                    self._seen.add(path.name)
                    if seconds is not None:
                        self._ends[int(ticket["job"])] = (self._began if first else time.monotonic()) + float(seconds)
            self._looked = changed
        except (OSError, ValueError, KeyError, TypeError):
            return  # none may join, or it is looked at again


class Memory:
    """The run's host memory: watched, and limited where its specification says so."""

    EVERY = 1.0  #: seconds between looks at a run with a limit
    SELDOM = 10.0  #: at one without: for the record only

    def __init__(self, spec: RunSpec) -> None:
        self.limit, self.peak = spec.memory_bytes, 0
        self._group = None if self.limit is None else memory.Cgroup.make(f"ptq-run-{spec.token}", self.limit)
        self._look_at = 0.0

    def inside(self) -> AbstractContextManager[None]:
        return self._group.inside() if self._group else contextlib.nullcontext()

    def over(self) -> int:
        """How much the run holds, if that is more than it may; else 0."""
        if time.monotonic() < self._look_at:
            return 0
        self._look_at = time.monotonic() + (self.SELDOM if self.limit is None else self.EVERY)
        held = memory.held_by(processes.descendants(os.getpid(), processes.everyone()))
        self.peak = max(self.peak, held)
        return held if self.limit is not None and held > self.limit else 0

    def killed(self) -> bool:
        return self._group is not None and self._group.killed()

    def words(self, held: int | None = None) -> str:
        used = "" if held is None else f"held {held / 2**30:.2f} GiB of host memory, "
        return f"the run {used}more than its limit of {(self.limit or 0) / 2**30:.2f} GiB (resources.memory)"

    def close(self) -> None:
        if self._group:
            self._group.close()
