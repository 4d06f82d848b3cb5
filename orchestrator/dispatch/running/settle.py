"""Writing down how an attempt ended, whatever has happened to the job since its ending was made up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import failpoints
from orchestrator.dispatch import adapted
from orchestrator.dispatch.running.outcome import CANCELLED, Ending, Report, report
from orchestrator.dispatch.running.strikes import is_the_machines
from orchestrator.errors import PtqError, StaleAttempt
from orchestrator.events import LAST_WORDS, events_of
from orchestrator.manifest import manifest_faults
from orchestrator.registry import artifacts, jobs
from orchestrator.registry.jobs import Job, Move
from orchestrator.registry.storage.engine import Registry
from orchestrator.states import JobResult, JobState, Reason

if TYPE_CHECKING:
    from sqlalchemy import Connection


def settle(
    conn: Connection, job: Job, ending: Ending, *, actor: str, at: float, detail: Mapping[str, Any] | None = None
) -> None:
    """`job` is as it was seen before this transaction: somebody may have cancelled it since, and is not overruled."""
    if ending.result is None and jobs.state_of(conn, job.id, job.attempt) is JobState.STOPPING:
        ending = CANCELLED
    to = Move(
        ending.state, ending.result, ending.reason, ending.message,
        counted=ending.counted, not_before=at + ending.delay if ending.delay else None, detail=detail or {},
    )  # fmt: skip
    jobs.move(conn, job.id, job.attempt, to, actor=actor, at=at)


def told_by(registry: Registry, job: Job) -> tuple[Report, list[str]]:
    """The job's last words in this attempt, and what is wrong with the artifact that they name."""
    folder = registry.paths.job(job.id)
    told = report(events_of(folder.events, LAST_WORDS), job.attempt)
    if told.artifact is None:
        return told, []
    if Path(told.artifact) != folder.artifact(job.attempt):  # nothing else is taken for what the job has left
        return told, [f"{told.artifact} is not this attempt's folder"]
    return told, manifest_faults(Path(told.artifact))


def settle_attempt(
    registry: Registry, run: int, job: Job, ending: Ending, told: Report, *, actor: str, at: float
) -> None:
    """Keep what a job that succeeded has left, and write down how its attempt ended.

    Raises OSError or PtqError where the machine has no room for it: what was trained is kept at a later look.
    """
    failpoints.reach("worker.settling")
    detail = {"run": run, "crashed_with": list(ending.crashed_with) or None}
    if ending.result is JobResult.SUCCEEDED:
        try:
            _keep(registry, job, Path(str(told.artifact)), ending, actor=actor, at=at, detail=detail)
            return
        except StaleAttempt:
            return
        except (OSError, PtqError) as error:
            if is_the_machines(error):
                raise
            reason = Reason.INCOMPLETE_ARTIFACT
            ending = Ending(JobResult.FAILED, reason, f"the artifact could not be kept: {error}")
    with registry.write() as conn:
        settle(conn, job, ending, actor=actor, at=at, detail=detail)


def _keep(
    registry: Registry, job: Job, folder: Path, ending: Ending, *, actor: str, at: float, detail: Mapping[str, Any]
) -> None:
    """Artifact, the base in it and success are one transaction; the files are copied and hashed before it."""
    staged = artifacts.stage_artifact(registry.paths, folder)
    base = adapted.base_of(registry, job, staged, at=at)
    failpoints.reach("worker.staged")
    with registry.write() as conn:
        artifact = artifacts.keep_artifact(conn, staged, job_id=job.id, attempt=job.attempt, now=at)
        if base is not None:
            adapted.enter(conn, job, base, artifact, actor=actor, at=at)
        settle(conn, job, ending, actor=actor, at=at, detail=detail)
    failpoints.reach("worker.settled")
