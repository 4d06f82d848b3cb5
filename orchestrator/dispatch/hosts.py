"""The runs under way, as the scheduler sees them: who is in them, and whether there is room for one more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from orchestrator.dispatch.fusing import Limits, steps_left, tokens_a_step
from orchestrator.dispatch.scheduler import Host
from orchestrator.jobspec import RunSpec
from orchestrator.paths import HomePaths
from orchestrator.registry import jobs
from orchestrator.registry.jobs import Job
from orchestrator.registry.runs import Lease
from orchestrator.states import JobState

if TYPE_CHECKING:
    from sqlalchemy import Connection


def find_hosts(conn: Connection, paths: HomePaths, leases: Sequence[Lease]) -> list[Host]:
    """The runs that hold these slots."""
    slots: dict[int, list[str]] = {}
    for lease in leases:
        slots.setdefault(lease.run_id, []).append(lease.slot)
    return [_host(conn, paths, run_id, names) for run_id, names in slots.items()]


def _host(conn: Connection, paths: HomePaths, run_id: int, slots: Sequence[str]) -> Host:
    live = jobs.live_jobs_of(conn, run_id)
    ids = tuple(job.id for job in live)
    run = paths.run(run_id)
    try:
        spec = RunSpec.read(run.spec)
    except (OSError, ValueError, TypeError):  # claimed this moment, or its folder is gone
        return Host(run=run_id, slots=tuple(slots), jobs=ids)
    ending = run.stop_request.exists() or run.exit_record.exists() or not run.inbox.exists()
    cancelled = bool(live) and all(job.state is JobState.STOPPING for job in live)
    return Host(
        run=run_id,
        slots=tuple(slots),
        jobs=ids,
        key=None if ending or cancelled else spec.fuse_key,
        tokens=sum(tokens_a_step(job.recipe) for job in live),
        steps=most_steps_left(live),
        limits=Limits(spec.fuse_jobs, spec.fuse_tokens, spec.fuse_fill),
    )


def most_steps_left(live: Iterable[Job]) -> int:
    """How long the run goes on by what is known: a joiner with no more steps than this does not make it longer."""
    known = [steps_left(job.recipe, job.step) if job.steps is None else job.steps - job.step for job in live]
    return max((steps for steps in known if steps is not None), default=0)
