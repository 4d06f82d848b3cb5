"""Who comes and who goes: jobs that join through the run's inbox, are asked to leave alone, or are out of time.

The first rank looks at the files, at most every 0.2 s, and all ranks hear of it at the same step boundary: that there
is news travels with the wish to stop (`stop.StopFlag`), and only then the news itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.jobspec import RunSpec, Ticket, close_inbox, take_tickets
from orchestrator.paths import RunPaths, read_json
from orchestrator.training.distributed import Processes
from orchestrator.training.job import TrainedJob
from orchestrator.training.stop import StopFlag, StopRequested

LOOK_SECONDS = 0.2  # a look is one listing of a folder and one stat a job: tens of microseconds
TIMEOUT = "timeout"
_WHYS = ("cancel", "preempt", TIMEOUT)


class LeaveRequested(Exception):
    """One job was asked to leave in the middle of an evaluation; `why`: cancel, preempt or timeout."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True)
class News:
    """What all ranks act on at a step boundary."""

    join: Sequence[Ticket] = ()
    leave: Mapping[int, str] = field(default_factory=dict)  #: job -> why: cancel, preempt or timeout
    over: bool = False  #: nobody is left, and nobody can come any more

    def __bool__(self) -> bool:
        return bool(self.join or self.leave or self.over)


class Company:
    def __init__(
        self,
        paths: RunPaths,
        spec: RunSpec,
        processes: Processes,
        stop: StopFlag,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths, self._keep_warm = paths, spec.keep_warm_seconds
        self._processes, self._stop, self._clock = processes, stop, clock
        self._born = clock()
        self._looked = self._looked_within = float("-inf")
        self._empty_since: float | None = None
        self._deadlines: dict[int, float] = {}
        self._taken: set[tuple[int, int]] = set()

    def admit(self, job: TrainedJob, *, first: bool) -> None:
        """Its time runs from now, or with those that the run starts with, from the start of this program."""
        limit = job.recipe.resources.time_limit
        self._deadlines.pop(job.spec.job, None)
        if limit is not None:
            self._deadlines[job.spec.job] = (self._born if first else self._clock()) + limit

    def news(self, present: Sequence[TrainedJob]) -> News:
        """At a step boundary, on all ranks. Raises StopRequested where somebody is there who has to stop."""
        mine = self._look(present) if self._processes.first else News()
        try:
            if not self._stop.check(note=int(bool(mine))):
                return News()
        except StopRequested:
            if present:
                raise
            return News(over=True)
        told: News = self._processes.gather(mine)[0]
        return told

    def within(self, *jobs: TrainedJob) -> None:
        """Between two batches of an evaluation of `jobs`, on all ranks. Raises StopRequested, LeaveRequested.

        An evaluation may take long; leaving it costs only the evaluation.
        """
        why = None
        if self._processes.first and self._clock() - self._looked_within >= LOOK_SECONDS:
            self._looked_within = self._clock()
            why = next((asked for job in jobs if (asked := self._asked_to_leave(job)) is not None), None)
        note = self._stop.check(note=0 if why is None else 1 + _WHYS.index(why))
        if note:
            raise LeaveRequested(_WHYS[note - 1])

    def _look(self, present: Sequence[TrainedJob]) -> News:
        if present and self._clock() - self._looked < LOOK_SECONDS:
            return News()
        self._looked = self._clock()
        join = self._tickets()
        leave = {job.spec.job: why for job in present if (why := self._asked_to_leave(job)) is not None}
        return News(join, leave, over=not present and not join and self._has_waited_enough())

    def _tickets(self) -> list[Ticket]:
        new = [ticket for ticket in take_tickets(self._paths) if (ticket.job, ticket.attempt) not in self._taken]
        self._taken |= {(ticket.job, ticket.attempt) for ticket in new}
        if new:
            self._empty_since = None
        return new

    def _has_waited_enough(self) -> bool:
        """Whether the base has been kept warm for nothing, and the inbox is closed now."""
        if self._empty_since is None:
            self._empty_since = self._clock()
        if self._paths.inbox.exists() and self._clock() - self._empty_since < self._keep_warm:
            return False
        return close_inbox(self._paths)

    def _asked_to_leave(self, job: TrainedJob) -> str | None:
        if self._clock() > self._deadlines.get(job.spec.job, float("inf")):
            return TIMEOUT
        if not job.paths.stop_request.exists():
            return None
        try:
            asked = read_json(job.paths.stop_request)
            if asked["attempt"] != job.spec.attempt:
                return None  # meant for an earlier try
            return str(asked["why"]) if asked["why"] in _WHYS else "cancel"
        except (OSError, ValueError, KeyError, TypeError):
            return None
