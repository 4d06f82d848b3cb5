"""The runs under way, as the scheduler sees them: who is in them, and whether there is room for one more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.dispatch.scheduling.admission import Limits
from orchestrator.dispatch.scheduling.box import Host
from orchestrator.dispatch.scheduling.fusing import Facts, steps_left
from orchestrator.jobspec import RunSpec
from orchestrator.paths import HomePaths
from orchestrator.registry import history, jobs
from orchestrator.registry.jobs import Job
from orchestrator.registry.reservations import Reservation
from orchestrator.registry.runs import Lease
from orchestrator.states import JobState

if TYPE_CHECKING:
    from sqlalchemy import Connection


@dataclass(frozen=True)
class Pace:
    """When a live job ends."""

    expected: float | None  #: by its steps a second so far; None: not known yet
    at_the_latest: float | None  #: by its time limit


def find_hosts(
    conn: Connection,
    paths: HomePaths,
    leases: Sequence[Lease],
    facts: Facts,
    *,
    reservations: Sequence[Reservation] = (),
    now: float = 0.0,
) -> list[Host]:
    """The runs and reservations that hold these slots."""
    held: dict[int, list[Lease]] = {}
    for lease in leases:
        held.setdefault(lease.run_id, []).append(lease)
    persons = {one.run_id: one for one in reservations}
    return [
        _reserved(run_id, found, persons[run_id])
        if run_id in persons
        else _host(conn, paths, run_id, found, facts, now)
        for run_id, found in held.items()
    ]


def paces(conn: Connection, live: Sequence[Job], now: float) -> dict[int, Pace]:
    """When each of these live jobs ends."""
    began = history.beginnings(conn, {job.id: job.attempt for job in live})
    return {job.id: _pace(job, began.get(job.id), now) for job in live}


def _pace(job: Job, began: history.Beginning | None, now: float) -> Pace:
    limit = job.recipe["resources"].get("time_limit")
    latest = None if limit is None or began is None else began.claimed_at + limit
    if began is None or began.running_at is None or job.steps is None or now <= began.running_at:
        return Pace(None, latest)
    done = job.step - began.step
    if done <= 0:
        return Pace(None, latest)
    return Pace(now + (job.steps - job.step) * (now - began.running_at) / done, latest)


def _host(conn: Connection, paths: HomePaths, run_id: int, leases: Sequence[Lease], facts: Facts, now: float) -> Host:
    live = jobs.live_jobs_of(conn, run_id)
    known = paces(conn, live, now).values()
    run = paths.run(run_id)
    host = Host(
        run=run_id,
        slots=tuple(lease.slot for lease in leases),
        jobs=tuple(job.id for job in live),
        users=tuple(job.user for job in live),
        groups=tuple(job.group_id for job in live if job.group_id is not None),
        priority=max((job.priority for job in live), default=0),
        started_at=leases[0].since,
        ends_at=_last(pace.at_the_latest for pace in known),
        expected=_last(pace.expected for pace in known),
        ending=run.stop_request.exists() or run.exit_record.exists(),
    )
    try:
        spec = RunSpec.read(run.spec)
    except (OSError, ValueError, TypeError):  # claimed this moment, or its folder is gone
        return host
    cancelled = bool(live) and all(job.state is JobState.STOPPING for job in live)
    return replace(
        host,
        key=None if host.ending or cancelled or not run.inbox.exists() else spec.fuse_key,
        loads=tuple(facts.loads(conn, host.jobs)),
        cost=None if spec.calibration is None else facts.cost(Path(spec.calibration)),
        steps=most_steps_left(live),
        limits=Limits(
            spec.fuse_jobs, spec.fuse_tokens, spec.fuse_fill, spec.fuse_slowdown, spec.fuse_gain, spec.fuse_slots_first
        ),
    )


def _reserved(run_id: int, leases: Sequence[Lease], one: Reservation) -> Host:
    slots = tuple(lease.slot for lease in leases)
    return Host(run=run_id, slots=slots, users=(one.user,), ends_at=one.until, reservation=one.id)


def _last(moments: Iterable[float | None]) -> float | None:
    """The latest; None where one is not known, or there is none."""
    found = list(moments)
    return None if None in found or not found else max(moment for moment in found if moment is not None)


def most_steps_left(live: Iterable[Job]) -> int:
    """How long the run goes on by what is known: a joiner with no more steps than this does not make it longer."""
    known = [steps_left(job.recipe, job.step) if job.steps is None else job.steps - job.step for job in live]
    return max((steps for steps in known if steps is not None), default=0)
