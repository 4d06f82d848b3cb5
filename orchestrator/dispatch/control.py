"""What a person asks of jobs that are there: cancel them, try them again. Works without a worker."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from orchestrator import failpoints
from orchestrator.dispatch import adapted
from orchestrator.dispatch.access import check_may_change, check_may_release
from orchestrator.dispatch.running import processes
from orchestrator.dispatch.running.requests import request_leave, request_stop
from orchestrator.errors import BadInput
from orchestrator.registry import controls, jobs, queue, reservations
from orchestrator.registry.jobs import Job, Move
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import Policy, load_policy
from orchestrator.states import JobResult, JobState, Reason

if TYPE_CHECKING:
    from sqlalchemy import Connection


def cancel(registry: Registry, references: Sequence[str], *, user: str, now: float) -> dict[int, JobState]:
    """Queued jobs are finished at once; live ones are asked to leave their runs. The state that each job was in.

    A run of which every job is cancelled is asked to end, by a supervisor that does not rely on the program's consent.
    """
    before: dict[int, JobState] = {}
    to_leave: list[Job] = []
    said = f"cancelled by {user}"
    with registry.write() as conn:
        found = jobs.list_jobs(conn, ids=jobs.resolve(conn, references))
        check_may_change(registry, found, "cancel")
        for job in found:
            before[job.id] = job.state
            if job.state is JobState.QUEUED:
                ended = Move(JobState.FINISHED, JobResult.CANCELLED, Reason.CANCELLED_BY_USER, said)
                jobs.move(conn, job.id, job.attempt, ended, actor=f"user:{user}", at=now)
            elif job.state in {JobState.STARTING, JobState.RUNNING}:
                asked = Move(JobState.STOPPING, message=said)
                jobs.move(conn, job.id, job.attempt, asked, actor=f"user:{user}", at=now)
            if job.state not in {JobState.QUEUED, JobState.FINISHED} and job.run_id is not None:
                to_leave.append(job)
        touched = {job.run_id for job in to_leave if job.run_id is not None}
        ending = [run_id for run_id in touched if _all_cancelled(conn, run_id)]
    failpoints.reach("cancel.written")
    # A shared home, a full disk: it is cancelled all the same, and the worker says so at its next look.
    with suppress(OSError):
        for job in to_leave:
            request_leave(registry.paths, job)
        for run_id in ending:
            request_stop(registry.paths.run(run_id))
    return before


def _all_cancelled(conn: Connection, run_id: int) -> bool:
    return all(job.state is JobState.STOPPING for job in jobs.live_jobs_of(conn, run_id))


def retry(registry: Registry, references: Sequence[str], *, user: str, now: float) -> list[int]:
    """Queue failed and cancelled jobs again, all of them or none; they go on from their newest checkpoint."""
    with registry.write() as conn:
        found = jobs.list_jobs(conn, ids=jobs.resolve(conn, references))
        check_may_change(registry, found, "retry")
        for job in found:
            if job.state is not JobState.FINISHED:
                raise BadInput(f"job {job.id} is {job.state}; only a failed or cancelled job can be tried again")
            if job.result is JobResult.SUCCEEDED:
                raise BadInput(f"job {job.id} has succeeded", hint="submit its recipe again to train it once more")
        adapted.refuse_taken(conn, found)
        for job in found:
            jobs.move(conn, job.id, job.attempt, Move(JobState.QUEUED), actor=f"user:{user}", at=now)
    return [job.id for job in found]


def pause(registry: Registry, references: Sequence[str], *, user: str, now: float) -> list[tuple[Job, bool]]:
    """Keep these jobs from starting (again); what runs goes on. Each as it was, and whether this has paused it."""
    with registry.write() as conn:
        found = jobs.list_jobs(conn, ids=jobs.resolve(conn, references))
        check_may_change(registry, found, "pause")
        changed = queue.pause(conn, [job.id for job in found], user=user, at=now)
    return [(job, job.id in changed) for job in found]


def resume(registry: Registry, references: Sequence[str], *, user: str, now: float) -> list[tuple[Job, bool]]:
    """Each as it was, and whether this lets it start again."""
    with registry.write() as conn:
        found = jobs.list_jobs(conn, ids=jobs.resolve(conn, references))
        check_may_change(registry, found, "resume")
        changed = queue.resume(conn, [job.id for job in found], user=user, at=now)
    return [(job, job.id in changed) for job in found]


def pause_queue(registry: Registry, why: str, *, user: str, now: float) -> None:
    with registry.write() as conn:
        controls.put(conn, controls.PAUSED, why, by=user, at=now)


def resume_queue(registry: Registry) -> bool:
    """Whether it was paused. Anybody may: everybody sees who paused it, and a queue must not depend on one person."""
    with registry.write() as conn:
        return controls.clear(conn, controls.PAUSED)


def release(registry: Registry, numbers: Sequence[int], *, user: str, now: float) -> list[int]:
    """End reservations; those that had not ended."""
    how: dict[str, Any] = {"by": user, "at": now, "up_since": processes.booted_at(), "half_life": _half_life(registry)}
    with registry.write() as conn:
        check_may_release(registry, [reservations.get(conn, number) for number in numbers])
        return [number for number in numbers if reservations.end(conn, number, **how)]


def _half_life(registry: Registry) -> float:
    """A fault in queue.toml keeps nobody from giving cards back."""
    try:
        return load_policy(registry.paths.root).half_life
    except BadInput:
        return Policy.half_life
