"""Writing down how an attempt ended, whatever has happened to the job since its ending was made up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.dispatch.running.outcome import CANCELLED, Ending
from orchestrator.registry import jobs
from orchestrator.registry.jobs import Job, Move
from orchestrator.states import JobState

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
