"""Who runs next, and where: a pure function from the queue and the slots to placements and reasons.

Order: higher priority first, then the older job. A job gets all its slots at once or none. The first job in line
that has to wait for slots keeps what is free for itself: smaller jobs behind it do not slip past, so a large job
is never starved. A job that can never run here, or waits for another job, holds nobody up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.registry.jobs import Waiting
from orchestrator.states import JobResult


@dataclass(frozen=True)
class Slot:
    name: str  #: cpu:<n> or gpu:<uuid>
    taken_by: str = ""  #: who uses it outside the queue; empty: nobody


@dataclass
class Plan:
    placements: dict[int, tuple[str, ...]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)  #: for every job that is not placed
    never: set[int] = field(default_factory=set)  #: need more slots than there are
    broken: dict[int, int] = field(default_factory=dict)  #: job -> the job it waited for, which did not succeed


def schedule(
    waiting: Sequence[Waiting],
    slots: Sequence[Slot],
    held: Mapping[str, int | None],
    endings: Mapping[int, JobResult | None],
) -> Plan:
    """Place what can start now.

    `held`: slot -> the job that holds it. `endings`: how the jobs ended that others wait for; None or absent: not yet.
    """
    plan = Plan()
    free = [slot.name for slot in slots if slot.name not in held and not slot.taken_by]
    first_in_line: Waiting | None = None
    for job in sorted(waiting, key=lambda job: (-job.priority, job.id)):
        if (broken := _broken(job, endings)) is not None:
            plan.broken[job.id] = broken
            plan.reasons[job.id] = f"job {broken} did not succeed"
        elif pending := [other for other in job.after if endings.get(other) is not JobResult.SUCCEEDED]:
            plan.reasons[job.id] = f"waits for {_jobs(pending)}"
        elif job.slots > len(slots):
            plan.never.add(job.id)
            plan.reasons[job.id] = f"needs {_slots(job.slots)}, this worker has {len(slots)}"
        elif first_in_line is not None:
            plan.reasons[job.id] = f"waits behind job {first_in_line.id}, which needs {_slots(first_in_line.slots)}"
        elif job.slots > len(free):
            first_in_line = job
            plan.reasons[job.id] = _why(job, slots, held, len(free))
        else:
            plan.placements[job.id] = tuple(free[: job.slots])
            free = free[job.slots :]
            held = {**held, **dict.fromkeys(plan.placements[job.id], job.id)}
    return plan


def _broken(job: Waiting, endings: Mapping[int, JobResult | None]) -> int | None:
    ended = (other for other in job.after if endings.get(other) not in {None, JobResult.SUCCEEDED})
    return next(ended, None)


def _why(job: Waiting, slots: Sequence[Slot], held: Mapping[str, int | None], free: int) -> str:
    parts = [f"needs {_slots(job.slots)}, {free} free"]
    holders: dict[int, int] = {}
    for slot in slots:
        holder = held.get(slot.name)
        if holder is not None:
            holders[holder] = holders.get(holder, 0) + 1
    parts += [f"job {holder} holds {count}" for holder, count in holders.items()]
    parts += [f"{slot.name} is used by {slot.taken_by}" for slot in slots if slot.taken_by and slot.name not in held]
    return ", ".join(parts)


def _slots(count: int) -> str:
    return "1 slot" if count == 1 else f"{count} slots"


def _jobs(ids: Sequence[int]) -> str:
    return ("job " if len(ids) == 1 else "jobs ") + ", ".join(map(str, ids))
