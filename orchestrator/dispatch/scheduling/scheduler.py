"""Who runs next, and where: a pure function from the queue, the slots and the runs to placements and reasons.

Order: see `line` (class, age and the user's share). A job gets all its slots at once or none. The first in line that
has to wait for slots keeps what is free for itself, so a large job is never starved; a job behind it passes only where
that cannot make it wait longer (`_Window`): the job's time limit ends before the first in line can start, or it takes
slots that the first in line will not need even then. A job that can never run here, waits for another job, or is kept
by a quota, a pause or its group's cap holds nobody up.

A job may also share a run with others of its fuse key (see `fusing`), which takes no slot. Where both are possible,
a free slot is taken unless sharing is nearly free, for a slot of its own is faster. Where nothing is free, it shares
while that pays (`admission`). While somebody in front waits for slots, a job behind joins only a run that goes on at
least as long by itself (it has no more steps to do than one of the run's jobs), so that the slots come free no later in
steps; else it waits its turn.

Sharing by turns: a run that has had its turn (`Policy.turn`) makes room for the first in line where that one ranks
higher than any of the run's jobs would, had they just been submitted. A run is not interrupted for its own user's jobs,
unless they are of a higher class. A run that makes room checkpoints, and its jobs stand in line again as new ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.cost import Cost, Load
from orchestrator.dispatch.running.outcome import seconds_to_wait
from orchestrator.dispatch.scheduling import admission, reasons
from orchestrator.dispatch.scheduling.admission import Limits
from orchestrator.dispatch.scheduling.box import Host, Slot
from orchestrator.dispatch.scheduling.line import Line
from orchestrator.registry.queue import Waiting
from orchestrator.settings import Policy
from orchestrator.states import JobResult


@dataclass
class Plan:
    placements: dict[int, tuple[str, ...]] = field(default_factory=dict)
    companions: dict[int, int] = field(default_factory=dict)  #: job -> the placed job whose new run it shares
    joins: dict[int, int] = field(default_factory=dict)  #: job -> the run under way that it joins
    alone: dict[int, str] = field(default_factory=dict)  #: placed job -> why it does not share what runs
    reasons: dict[int, str] = field(default_factory=dict)  #: for every job that does not start
    never: set[int] = field(default_factory=set)  #: need more slots than there are, or than they may ever have
    broken: dict[int, int] = field(default_factory=dict)  #: job -> the job it waited for, which did not succeed
    leave: list[int] = field(default_factory=list)  #: empty runs that somebody in line needs the slots of
    preempt: dict[int, int] = field(default_factory=dict)  #: run that has had its turn -> the job it makes room for
    order: list[int] = field(default_factory=list)  #: all waiting jobs, as they stand in line


def schedule(
    waiting: Sequence[Waiting],
    slots: Sequence[Slot],
    held: Mapping[str, int | None],
    endings: Mapping[int, JobResult | None],
    hosts: Sequence[Host] = (),
    limits: Limits = Limits(),
    *,
    policy: Policy = Policy(),
    usage: Mapping[str, float] | None = None,
    now: float = 0.0,
    paused: str = "",
) -> Plan:
    """Place what can start now.

    `held`: slot -> the job that holds it. `endings`: how the jobs ended that others wait for; None or absent: not yet.
    `limits` are those of runs that are started now; `hosts` bring their own. `usage`: user -> decayed slot-seconds.
    `paused`: why nothing may start; empty: it may.
    """
    planner = _Planner(waiting, slots, held, endings, hosts, limits, policy, usage or {}, now)
    for job in planner.line:
        planner.plan.order.append(job.id)
        planner.consider(job, paused)
    return planner.plan


class _Planner:
    def __init__(
        self,
        waiting: Sequence[Waiting],
        slots: Sequence[Slot],
        held: Mapping[str, int | None],
        endings: Mapping[int, JobResult | None],
        hosts: Sequence[Host],
        limits: Limits,
        policy: Policy,
        usage: Mapping[str, float],
        now: float,
    ) -> None:
        here = {slot.name for slot in slots}
        hosts = [replace(host, slots=tuple(name for name in host.slots if name in here)) for host in hosts]
        self.slots, self.held, self.endings, self.hosts = slots, dict(held), endings, hosts
        self.limits, self.policy, self.now = limits, policy, now
        self.plan = Plan()
        self.free = [slot.name for slot in slots if slot.name not in held and slot.usable]
        self.rooms = [_Room(h.limits, h.key, [*h.loads], h.cost, h.steps, run=h.run) for h in hosts]
        self.holding = _holding(hosts)
        self.in_groups: dict[int, int] = {}
        for group in (group for host in hosts for group in host.groups):
            self.in_groups[group] = self.in_groups.get(group, 0) + 1
        self.started: list[tuple[Waiting, int]] = []  #: placed in this plan, with their slots
        self.line = Line(waiting, usage, self.holding, policy, now, self._waits_for_slots_alone)
        self.first: Waiting | None = None
        self.window = _Window(math.inf, 0)

    def consider(self, job: Waiting, paused: str) -> None:
        plan = self.plan
        if (broken := _broken(job, self.endings)) is not None:
            plan.broken[job.id] = broken
            plan.reasons[job.id] = f"{reasons.name(broken)} did not succeed"
        elif (never := self._never(job)) is not None:
            plan.never.add(job.id)
            plan.reasons[job.id] = never
        elif (kept := self._kept(job) or paused) != "":
            plan.reasons[job.id] = kept
        elif room := self._room_for(job):
            room.take(job, plan)
            self._count(job)
        elif (over := self._over_quota(job)) != "":
            plan.reasons[job.id] = over
        elif self.first is not None and not self._may_pass(job):
            plan.reasons[job.id] = reasons.behind(job, self.first, self.slots, self.window.until, self.now)
        elif job.slots <= len(self.free):
            self._place(job)
        else:
            self._is_first(job)

    def _place(self, job: Waiting) -> None:
        names = tuple(self.free[: job.slots])
        self.plan.placements[job.id] = names
        if why := self._why_alone(job):
            self.plan.alone[job.id] = why
        self.free = self.free[job.slots :]
        self.held |= dict.fromkeys(names, job.id)
        self.rooms.append(_Room(self.limits, job.key, [job.load], job.cost, job.steps or 0, leader=job.id))
        self.holding[job.user] = self.holding.get(job.user, 0.0) + job.slots
        self.line.gives(job.user, job.slots)
        self.started.append((job, job.slots))
        self._count(job)
        if self.first is not None and not self._ends_in_time(job):
            self.window = _Window(self.window.until, self.window.spare - job.slots)

    def _why_alone(self, job: Waiting) -> str:
        """Why a job that takes slots of its own does not share a run with others; empty: there is none to share."""
        if job.alone:
            return job.alone
        rooms = [room for room in self.rooms if room.key is not None and room.key == job.key]
        said = [f"{room.label}: {room.refuses(job) or 'a slot of its own is faster'}" for room in rooms]
        return "; ".join(said)

    def _is_first(self, job: Waiting) -> None:
        self.first = job
        missing = job.slots - len(self.free)
        going = [host for host in self.hosts if host.ending]
        staying = [host for host in self.hosts if host.run not in self.plan.joins.values()]  # others are used again
        self.plan.leave = _to_leave(missing - sum(len(host.slots) for host in going), staying)
        leaving = [host for host in self.hosts if host.run in self.plan.leave]
        missing -= sum(len(host.slots) for host in (*going, *leaving))
        self.plan.preempt = {host.run: job.id for host in self._turns_over(job, missing)}
        self.window = self._window(job)
        self.plan.reasons[job.id] = self._why(job)

    def _count(self, job: Waiting) -> None:
        if job.group is not None:
            self.in_groups[job.group] = self.in_groups.get(job.group, 0) + 1

    def _waits_for_slots_alone(self, job: Waiting) -> bool:
        return _broken(job, self.endings) is None and self._never(job) is None and not self._kept(job)

    def _never(self, job: Waiting) -> str | None:
        """Why the job cannot run however long it waits; None: it can."""
        if job.slots > len(self.slots):
            return f"needs {reasons.slots(job.slots, self.slots)}, this worker has {len(self.slots)}"
        for whose, quota, _ in self._quotas(job.user):
            if job.slots > quota:
                return f"needs {reasons.slots(job.slots, self.slots)}, {whose} may have {quota} at once (queue.toml)"
        return None

    def _kept(self, job: Waiting) -> str:
        """What the job waits for beside slots."""
        done = {JobResult.SUCCEEDED}
        pending = [
            other
            for other in job.after
            if self.endings.get(other) not in (set(JobResult) if other in job.after_any else done)
        ]
        if pending:
            return f"waits for {reasons.names(pending)}"
        if left := seconds_to_wait(job.not_before, self.now):
            return f"is tried again in {left:.0f} s"
        if job.paused_by:
            return f"paused by {job.paused_by}: `ptq resume {job.id}` lets it start"
        if job.group is not None and job.at_once is not None and self.in_groups.get(job.group, 0) >= job.at_once:
            return f"group g{job.group} runs {job.at_once} at a time"
        return ""

    def _over_quota(self, job: Waiting) -> str:
        for whose, quota, members in self._quotas(job.user):
            have = sum(self.holding.get(user, 0.0) for user in members)
            if have + job.slots > quota + 1e-6:
                ends = reasons.first_end([host for host in self.hosts if set(host.users) & set(members)], self.now)
                what = f"{whose} has {have:g} of at most {quota} {reasons.unit(quota, self.slots)}"
                return f"needs {job.slots}, {what}{ends}"
        return ""

    def _quotas(self, user: str) -> list[tuple[str, int, frozenset[str]]]:
        return self.policy.quotas_on(user) if self.policy.quotas or self.policy.teams else []

    def _room_for(self, job: Waiting) -> _Room | None:
        """The least filled run that the job may share; with a slot of its own at hand, only one not yet filled."""
        fits = self.first is None and job.slots <= len(self.free) and not self._over_quota(job)
        possible = [
            room
            for room in self.rooms
            if room.has_room_for(job)
            and room.run not in self.plan.leave
            and room.run not in self.plan.preempt
            and not (fits and room.is_filled_by(job))
            and not (self.first is not None and not room.goes_on_as_long_as(job))
        ]
        return min(possible, key=lambda room: sum(load.tokens for load in room.loads), default=None)

    def _may_pass(self, job: Waiting) -> bool:
        """Whether the job may go before the first in line."""
        if job.slots > len(self.free):
            return False
        return self._ends_in_time(job) or job.slots <= self.window.spare

    def _ends_in_time(self, job: Waiting) -> bool:
        return job.time_limit is not None and self.now + job.time_limit <= self.window.until

    def _window(self, first: Waiting) -> _Window:
        """Until when the first in line must wait, if all goes fast; what it leaves free even then, if all goes slowly.

        A run of which neither pace nor time limit is known may end at any moment, so it opens no window. What people
        use outside the queue does not end by itself: where that is in the way, jobs with a time limit pass.
        """
        ends = [(self._earliest(host, first), self._latest(host), len(host.slots)) for host in self.hosts]
        for job, count in self.started:
            limit = None if job.time_limit is None else self.now + job.time_limit
            ends.append((self.now if limit is None else limit, math.inf if limit is None else limit, count))
        missing = first.slots - len(self.free)
        until = math.inf
        for earliest, _, count in sorted(ends):
            missing -= count
            if missing <= 0:
                until = earliest
                break
        surely = len(self.free) + sum(count for _, latest, count in ends if latest <= until)
        return _Window(until, 0 if until == math.inf else max(0, surely - first.slots))

    def _earliest(self, host: Host, first: Waiting) -> float:
        if host.ending or host.run in self.plan.leave or host.run in self.plan.preempt:
            return self.now
        known = [moment for moment in (host.ends_at, host.expected) if moment is not None]
        earliest = max(self.now, min(known)) if known else self.now
        if self._gives_way(host, first) and self.policy.turn is not None:
            earliest = min(earliest, max(self.now, host.started_at + self.policy.turn))
        return earliest

    def _latest(self, host: Host) -> float:
        return math.inf if host.ends_at is None else max(self.now, host.ends_at)

    def _turns_over(self, first: Waiting, missing: int) -> list[Host]:
        """Runs that make room for the first in line now: the lowest ranks first, and none if all are not enough."""
        if missing <= 0 or self.policy.turn is None:
            return []
        over = [
            host
            for host in self.hosts
            if self._gives_way(host, first) and self.now - host.started_at >= self.policy.turn
            and host.run not in self.plan.joins.values()
        ]  # fmt: skip
        over.sort(key=lambda host: (self._standing(host), -len(host.slots), host.run))
        if sum(len(host.slots) for host in over) < missing:
            return []
        chosen: list[Host] = []
        for host in over:
            if sum(len(one.slots) for one in chosen) < missing:
                chosen.append(host)
        for host in list(chosen):  # a large one may have made an earlier one superfluous
            if sum(len(one.slots) for one in chosen) - len(host.slots) >= missing:
                chosen.remove(host)
        return chosen

    def _gives_way(self, host: Host, first: Waiting) -> bool:
        """Whether the first in line comes before this run's jobs, once they have had their turn."""
        if host.ending or host.reservation is not None or not host.jobs or not host.slots:
            return False
        if first.user in host.users:
            return first.priority > host.priority
        return self.line.standing((first.user,), first.priority) > self._standing(host)

    def _standing(self, host: Host) -> float:
        return self.line.standing(host.users, host.priority)

    def _why(self, job: Waiting) -> str:
        placed = {one.id: count for one, count in self.started}
        full = [
            f"{room.label}: {said}"
            for room in self.rooms
            if (said := room.refuses(job) or reasons.apart(job.key, room.key))
        ]
        if job.alone and any(room.key is not None for room in self.rooms):
            full = [f"any run: {job.alone}"]
        free, gone = len(self.free), {**dict.fromkeys(self.plan.leave, "ending"), **self.plan.preempt}
        return reasons.why(job, self.slots, self.held, self._hosts_now(), placed, full, free, gone, self.now)

    def _hosts_now(self) -> list[Host]:
        """With those who join in this plan: a warm run that somebody has just joined is not ending."""
        joined: dict[int, tuple[int, ...]] = {}
        for number, run in self.plan.joins.items():
            joined[run] = (*joined.get(run, ()), number)
        return [replace(host, jobs=(*host.jobs, *joined.get(host.run, ()))) for host in self.hosts]


@dataclass(frozen=True)
class _Window:
    """What may be done with free slots while the first in line waits."""

    until: float  #: it may start then, and not before
    spare: int  #: slots that it leaves free even then


@dataclass
class _Room:
    """A run, under way or about to start, while the plan is made."""

    limits: Limits
    key: str | None
    loads: list[Load]
    cost: Cost | None
    steps: int
    run: int | None = None
    leader: int | None = None

    @property
    def label(self) -> str:
        return f"run {self.run}" if self.run is not None else f"job {self.leader}'s run"

    def has_room_for(self, job: Waiting) -> bool:
        return self.key is not None and self.key == job.key and self.refuses(job) is None

    def refuses(self, job: Waiting) -> str | None:
        """Why a job of its key may not join it, for a person; None: it may, or it has another key."""
        if self.key is None or self.key != job.key:
            return None
        return admission.refusal(self.cost, self.limits, self.loads, job.load)

    def is_filled_by(self, job: Waiting) -> bool:
        return not admission.leaves_a_slot_free(self.cost, self.limits, self.loads, job.load)

    def goes_on_as_long_as(self, job: Waiting) -> bool:
        return job.steps is not None and job.steps <= self.steps

    def take(self, job: Waiting, plan: Plan) -> None:
        self.loads.append(job.load)
        self.steps = max(self.steps, job.steps or 0)
        if self.run is not None:
            plan.joins[job.id] = self.run
        elif self.leader is not None:
            plan.companions[job.id] = self.leader


def _holding(hosts: Iterable[Host]) -> dict[str, float]:
    """user -> slots held; who shares a run holds a part of its slots."""
    found: dict[str, float] = {}
    for host in hosts:
        for user in host.users:
            found[user] = found.get(user, 0.0) + len(host.slots) / len(host.users)
    return found


def _to_leave(missing: int, hosts: Sequence[Host]) -> list[int]:
    """Empty runs that give their slots up, no more than are needed."""
    found = []
    for host in hosts:
        if missing > 0 and host.warm and host.slots:
            found.append(host.run)
            missing -= len(host.slots)
    return found


def _broken(job: Waiting, endings: Mapping[int, JobResult | None]) -> int | None:
    ended = (
        other
        for other in job.after
        if other not in job.after_any and endings.get(other) not in {None, JobResult.SUCCEEDED}
    )
    return next(ended, None)
