"""A box of GPUs and the people on it, simulated event by event with the scheduler that the worker uses.

Nothing is trained: a job has an arrival, a number of GPUs and a length. The scheduler sees what it sees in earnest: the
line, the runs with their pace and time limits, what each user has used. A run that makes room loses `RESTART` seconds.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orchestrator.dispatch.scheduling.box import Host, Slot
from orchestrator.dispatch.scheduling.scheduler import schedule
from orchestrator.registry.queue import Waiting
from orchestrator.registry.usage import decayed
from orchestrator.settings import Policy

HOUR, DAY = 3600.0, 86400.0
RESTART = 60.0  #: seconds to load a base again, for a run that made room


@dataclass
class Job:
    id: int
    user: str
    gpus: int
    length: float  #: seconds of work
    at: float  #: submitted
    priority: int = 50
    limit: float | None = None
    left: float = 0.0  #: of the work
    since: float = 0.0  #: in line since then
    started_at: float | None = None  #: for the first time
    ended_at: float | None = None
    waited: float = 0.0  #: in line, all times together
    turns: int = 0  #: how often it made room


@dataclass
class Result:
    jobs: list[Job]
    gpus: int
    horizon: float
    busy: float  #: GPU-seconds in which a GPU was held, within the horizon
    lost: float  #: of these, spent on loading again

    @property
    def utilisation(self) -> float:
        return (self.busy - self.lost) / (self.gpus * self.horizon)

    def waits(self, which: Callable[[Job], bool]) -> list[float]:
        """Seconds in line of these jobs; one that never ended has waited until the end."""
        return sorted(job.waited for job in self.jobs if which(job))


@dataclass
class Box:
    gpus: int
    policy: Policy
    blind: Callable[[Job, Waiting], Waiting] = lambda job, seen: seen  #: what a simpler scheduler would be told
    now: float = 0.0
    line: dict[int, Job] = field(default_factory=dict)
    running: dict[int, tuple[Job, tuple[str, ...], float]] = field(default_factory=dict)  #: id -> job, cards, since
    usage: dict[str, tuple[float, float]] = field(default_factory=dict)  #: user -> slot-seconds, at
    busy: float = 0.0
    lost: float = 0.0

    def run(self, jobs: Sequence[Job], horizon: float) -> Result:
        events: list[tuple[float, int]] = [(job.at, job.id) for job in jobs]
        heapq.heapify(events)
        by_id = {job.id: job for job in jobs}
        looked_for: set[float] = set()
        while events and (moment := heapq.heappop(events))[0] < horizon:
            self._charge(moment[0])
            self.now = moment[0]
            job = by_id.get(moment[1])
            if job is not None and job.id not in self.running and job.started_at is None and job.id not in self.line:
                job.left, job.since = job.length, self.now
                self.line[job.id] = job
            self._end_what_is_over()
            for when in {*self._place()} - looked_for:
                looked_for.add(when)
                heapq.heappush(events, (when, 0))
        self._charge(horizon)
        for job in self.line.values():
            job.waited += horizon - job.since
        return Result([job for job in jobs if job.at < horizon], self.gpus, horizon, self.busy, self.lost)

    def _end_what_is_over(self) -> None:
        for job, _, since in list(self.running.values()):
            if self.now >= since + job.left - 1e-6:
                job.left, job.ended_at = 0.0, self.now
                del self.running[job.id]

    def _place(self) -> list[float]:
        """Schedule until nothing more changes; moments at which to look again."""
        if not self.line:
            return []
        slots = [Slot(f"gpu:{n}") for n in range(self.gpus)]
        hosts = [self._host(*one) for one in self.running.values()]
        held = {name: host.jobs[0] for host in hosts for name in host.slots}
        waiting = [self.blind(job, self._waiting(job)) for job in self.line.values()]
        usage = {user: decayed(used, self.now - at, self.policy.half_life) for user, (used, at) in self.usage.items()}
        plan = schedule(waiting, slots, dict(held), {}, hosts, policy=self.policy, usage=usage, now=self.now)
        again = [self._start(number, names) for number, names in plan.placements.items()]
        for run in plan.preempt:
            self._make_room(run)
        if plan.preempt:
            return [*again, *self._place()]
        if self.policy.turn is not None and self.line:
            turns = (since + self.policy.turn for _, _, since in self.running.values())
            again += [when for when in turns if when > self.now]
        return again

    def _start(self, number: int, names: tuple[str, ...]) -> float:
        job = self.line.pop(number)
        job.waited += self.now - job.since
        job.started_at = self.now if job.started_at is None else job.started_at
        if job.turns:
            job.left += RESTART
            self.lost += RESTART * job.gpus
        self.running[job.id] = (job, names, self.now)
        return self.now + job.left

    def _make_room(self, number: int) -> None:
        job, _, since = self.running.pop(number)
        job.left -= self.now - since
        job.since, job.turns = self.now, job.turns + 1
        self.line[job.id] = job

    def _waiting(self, job: Job) -> Waiting:
        return Waiting(
            job.id,
            int(job.started_at is not None),
            job.priority,
            job.gpus,
            user=job.user,
            since=job.since,
            time_limit=job.limit,
        )

    def _host(self, job: Job, names: tuple[str, ...], since: float) -> Host:
        limit = None if job.limit is None else since + job.limit
        return Host(
            job.id, names, (job.id,), users=(job.user,), priority=job.priority, started_at=since, ends_at=limit,
            expected=since + job.left if self.now - since > 60 else None,
        )  # fmt: skip

    def _charge(self, until: float) -> None:
        for job, names, _ in self.running.values():
            seconds = (until - self.now) * len(names)
            used, at = self.usage.get(job.user, (0.0, self.now))
            self.usage[job.user] = (decayed(used, until - at, self.policy.half_life) + seconds, until)
            self.busy += seconds


def month(seed: int, days: float = 30.0) -> list[Job]:
    """What four people submit to eight GPUs: about nine tenths of what the box can do, most of it by one of them.

    heavy: sweeps of 26 jobs of 1 to 6 hours, twice a day on working days; light: three jobs a day of 20 minutes to 2
    hours; gang: one job of 4 or 8 GPUs a day, for 3 to 10 hours; short: 25 jobs of 2 to 15 minutes, in working hours.
    Two thirds name a time limit, of 1.2 to 3 times what they need. A tenth of the heavy user's are of high priority.
    """
    dice = random.Random(seed)
    made: list[Job] = []

    def add(user: str, gpus: int, length: float, at: float, priority: int = 50) -> None:
        limit = length * dice.uniform(1.2, 3.0) if dice.random() < 2 / 3 else None
        made.append(Job(0, user, gpus, length, at, priority, limit))

    for day in range(int(days)):
        start = day * DAY
        working = day % 7 < 5
        for _ in range(2 if working else 0):
            at = start + dice.uniform(9, 20) * HOUR
            for _ in range(26):
                add("heavy", 1, dice.uniform(1, 6) * HOUR, at, 100 if dice.random() < 0.1 else 50)
        for _ in range(3):
            add("light", 1, dice.uniform(1 / 3, 2) * HOUR, start + dice.uniform(8, 22) * HOUR)
        add("gang", dice.choice([4, 4, 8]), dice.uniform(3, 10) * HOUR, start + dice.uniform(9, 18) * HOUR)
        for _ in range(25 if working else 5):
            add("short", 1, dice.uniform(2, 15) * 60, start + dice.uniform(9, 18) * HOUR)
    made.sort(key=lambda job: job.at)
    for number, job in enumerate(made, start=1):
        job.id = number
    return made
