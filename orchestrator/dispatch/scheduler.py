"""Who runs next, and where: a pure function from the queue, the slots and the runs to placements and reasons.

Order: higher priority first, then the older job. A job gets all its slots at once or none. The first job in line
that has to wait for slots keeps what is free for itself: smaller jobs behind it do not slip past, so a large job
is never starved. A job that can never run here, or waits for another job, holds nobody up.

A job may also share a run with others of its fuse key (see `fusing`), which takes no slot. Where both are possible,
a free slot is taken once the run is filled (`Limits.fill`): sharing is nearly free up to there, and a slot of its own
is faster beyond. Where nothing is free, it shares as long as there is room. While somebody in front waits for slots, a
job behind joins only a run that goes on at least as long by itself (it has no more steps to do than one of the run's
jobs), so that the slots come free no later in steps; else it waits its turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.dispatch.fusing import Limits
from orchestrator.registry.jobs import Waiting
from orchestrator.states import JobResult


@dataclass(frozen=True)
class Slot:
    name: str  #: cpu:<n> or gpu:<uuid>
    taken_by: str = ""  #: who uses it outside the queue; empty: nobody


@dataclass(frozen=True)
class Host:
    """A run under way."""

    run: int
    slots: tuple[str, ...] = ()
    jobs: tuple[int, ...] = ()  #: that are in it; none: its base is kept warm, or it is just ending
    key: str | None = None  #: jobs with this key may join; None: nobody may
    tokens: int = 0  #: estimated, a step, of all its jobs
    steps: int = 0  #: that it has still to do, as far as is known
    limits: Limits = field(default_factory=Limits)


@dataclass
class Plan:
    placements: dict[int, tuple[str, ...]] = field(default_factory=dict)
    companions: dict[int, int] = field(default_factory=dict)  #: job -> the placed job whose new run it shares
    joins: dict[int, int] = field(default_factory=dict)  #: job -> the run under way that it joins
    reasons: dict[int, str] = field(default_factory=dict)  #: for every job that does not start
    never: set[int] = field(default_factory=set)  #: need more slots than there are
    broken: dict[int, int] = field(default_factory=dict)  #: job -> the job it waited for, which did not succeed
    leave: list[int] = field(default_factory=list)  #: empty runs that somebody in line needs the slots of


def schedule(
    waiting: Sequence[Waiting],
    slots: Sequence[Slot],
    held: Mapping[str, int | None],
    endings: Mapping[int, JobResult | None],
    hosts: Sequence[Host] = (),
    limits: Limits = Limits(),
) -> Plan:
    """Place what can start now.

    `held`: slot -> the job that holds it. `endings`: how the jobs ended that others wait for; None or absent: not yet.
    `limits` are those of runs that are started now; `hosts` bring their own.
    """
    plan = Plan()
    free = [slot.name for slot in slots if slot.name not in held and not slot.taken_by]
    rooms = [_Room(host.limits, host.key, len(host.jobs), host.tokens, host.steps, run=host.run) for host in hosts]
    first_in_line: Waiting | None = None
    for job in sorted(waiting, key=lambda job: (-job.priority, job.id)):
        fits = first_in_line is None and job.slots <= len(free)
        if (broken := _broken(job, endings)) is not None:
            plan.broken[job.id] = broken
            plan.reasons[job.id] = f"job {broken} did not succeed"
        elif pending := [other for other in job.after if endings.get(other) is not JobResult.SUCCEEDED]:
            plan.reasons[job.id] = f"waits for {_jobs(pending)}"
        elif job.slots > len(slots):
            plan.never.add(job.id)
            plan.reasons[job.id] = f"needs {_slots(job.slots)}, this worker has {len(slots)}"
        elif room := _room_for(job, rooms, fits=fits, behind=first_in_line is not None):
            room.take(job, plan)
        elif first_in_line is not None:
            plan.reasons[job.id] = f"waits behind job {first_in_line.id}, which needs {_slots(first_in_line.slots)}"
        elif not fits:
            first_in_line = job
            plan.reasons[job.id] = _why(job, slots, held, hosts, rooms, len(free))
            plan.leave = _to_leave(job.slots - len(free), hosts)
        else:
            plan.placements[job.id] = tuple(free[: job.slots])
            free = free[job.slots :]
            held = {**held, **dict.fromkeys(plan.placements[job.id], job.id)}
            rooms.append(_Room(limits, job.key, 1, job.tokens, job.steps or 0, leader=job.id))
    return plan


@dataclass
class _Room:
    """A run, under way or about to start, while the plan is made."""

    limits: Limits
    key: str | None
    jobs: int
    tokens: int
    steps: int
    run: int | None = None
    leader: int | None = None

    def has_room_for(self, job: Waiting) -> bool:
        """An empty run takes any job of its key: a job that is too large to share may still run."""
        if self.key is None or self.key != job.key:
            return False
        return self.jobs == 0 or (self.jobs < self.limits.jobs and self.tokens + job.tokens <= self.limits.tokens)

    def is_filled_by(self, job: Waiting) -> bool:
        return self.jobs > 0 and self.tokens + job.tokens > self.limits.fill

    def goes_on_as_long_as(self, job: Waiting) -> bool:
        return job.steps is not None and job.steps <= self.steps

    def take(self, job: Waiting, plan: Plan) -> None:
        self.jobs, self.tokens, self.steps = self.jobs + 1, self.tokens + job.tokens, max(self.steps, job.steps or 0)
        if self.run is not None:
            plan.joins[job.id] = self.run
        elif self.leader is not None:
            plan.companions[job.id] = self.leader


def _room_for(job: Waiting, rooms: Iterable[_Room], *, fits: bool, behind: bool) -> _Room | None:
    """The least filled run that the job may share; with a slot of its own at hand (`fits`), only one not yet filled."""
    possible = [
        room
        for room in rooms
        if room.has_room_for(job)
        and not (fits and room.is_filled_by(job))
        and not (behind and not room.goes_on_as_long_as(job))
    ]
    return min(possible, key=lambda room: room.tokens, default=None)


def _to_leave(missing: int, hosts: Sequence[Host]) -> list[int]:
    """Empty runs that give their slots up, no more than are needed."""
    found = []
    for host in hosts:
        if missing > 0 and not host.jobs and host.key is not None:
            found.append(host.run)
            missing -= len(host.slots)
    return found


def _broken(job: Waiting, endings: Mapping[int, JobResult | None]) -> int | None:
    ended = (other for other in job.after if endings.get(other) not in {None, JobResult.SUCCEEDED})
    return next(ended, None)


def _why(
    job: Waiting,
    slots: Sequence[Slot],
    held: Mapping[str, int | None],
    hosts: Sequence[Host],
    rooms: Sequence[_Room],
    free: int,
) -> str:
    parts = [f"needs {_slots(job.slots)}, {free} free"]
    host_of = {name: host for host in hosts for name in host.slots}
    holders: dict[str, int] = {}
    for slot in slots:
        holder = _holder(held.get(slot.name), host_of.get(slot.name))
        if holder is not None:
            holders[holder] = holders.get(holder, 0) + 1
    parts += [f"{holder} {count}" for holder, count in holders.items()]
    parts += [f"{slot.name} is used by {slot.taken_by}" for slot in slots if slot.taken_by and slot.name not in held]
    full = [room for room in rooms if room.key is not None and room.key == job.key]
    if full:
        names = [f"run {room.run}" if room.run is not None else f"job {room.leader}'s run" for room in full]
        parts.append(f"{' and '.join(names)} on its base {'is' if len(full) == 1 else 'are'} full")
    return ", ".join(parts)


def _holder(job: int | None, host: Host | None) -> str | None:
    if host is not None and len(host.jobs) > 1:
        return f"{_jobs(host.jobs)} hold"
    if host is not None and not host.jobs:
        return f"run {host.run} (ending) holds"
    return None if job is None else f"job {job} holds"


def _slots(count: int) -> str:
    return "1 slot" if count == 1 else f"{count} slots"


def _jobs(ids: Sequence[int]) -> str:
    return ("job " if len(ids) == 1 else "jobs ") + ", ".join(map(str, ids))
