"""What happened to jobs: events, written with every change of state and never changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, func, insert, select

from orchestrator.registry.storage.ids import among
from orchestrator.registry.storage.tables import job_events
from orchestrator.states import JobState


@dataclass(frozen=True)
class JobEvent:
    job_id: int
    attempt: int
    at: float
    actor: str
    kind: str
    detail: dict[str, Any]


def last_event(conn: Connection) -> int:
    """Grows with whatever happens to a job: as long as it does not, the queue has not changed."""
    return conn.execute(select(func.max(job_events.c.id))).scalar() or 0


def note(
    conn: Connection, job_id: int, attempt: int, *, actor: str, at: float, kind: str, detail: Mapping[str, Any]
) -> None:
    """Enter something beside a change of state into the job's history."""
    record(conn, job_id, attempt, at, actor, kind, detail)


def crashes_in_company(conn: Connection, ids: Iterable[int]) -> dict[int, int]:
    """How many runs went down while these jobs shared them with others, for those jobs that saw one.

    `dispatch.running.reconcile` notes the company in the event with which it queues a job again.
    """
    wanted = list(ids)
    if not wanted:
        return {}
    requeued = (
        among(job_events.c.job_id, wanted),
        job_events.c.kind == JobState.QUEUED.value,
        job_events.c.attempt > 0,
    )
    found: dict[int, int] = {}
    for row in conn.execute(select(job_events.c.job_id, job_events.c.detail).where(*requeued)):
        if row.detail.get("crashed_with"):
            found[row.job_id] = found.get(row.job_id, 0) + 1
    return found


def claimed_at(conn: Connection, job_id: int, attempt: int) -> float | None:
    """When this attempt began."""
    event = (job_events.c.job_id == job_id, job_events.c.attempt == attempt)
    query = select(job_events.c.at).where(*event, job_events.c.kind == JobState.STARTING.value)
    return conn.execute(query).scalar()


@dataclass(frozen=True)
class Beginning:
    """How a live job's present attempt began."""

    claimed_at: float
    running_at: float | None  #: when training reported for the first time
    step: int  #: at which it then stood


def beginnings(conn: Connection, attempts: Mapping[int, int]) -> dict[int, Beginning]:
    """`attempts`: job -> its present attempt."""
    kinds = (JobState.STARTING.value, JobState.RUNNING.value)
    query = select(job_events).where(among(job_events.c.job_id, attempts), job_events.c.kind.in_(kinds))
    found: dict[int, Beginning] = {}
    for row in conn.execute(query.order_by(job_events.c.id)) if attempts else ():
        if row.attempt != attempts[row.job_id]:
            continue
        if row.kind == JobState.STARTING:
            found[row.job_id] = Beginning(row.at, None, 0)
        elif row.job_id in found:
            found[row.job_id] = replace(found[row.job_id], running_at=row.at, step=int(row.detail.get("step", 0)))
    return found


def list_events(conn: Connection, job_id: int) -> list[JobEvent]:
    """What happened to the job, oldest first."""
    columns = [job_events.c[name] for name in JobEvent.__dataclass_fields__]
    rows = conn.execute(select(*columns).where(job_events.c.job_id == job_id).order_by(job_events.c.id))
    return [JobEvent(*row) for row in rows]


def repeats(conn: Connection, job_id: int) -> list[int]:
    """The jobs that were submitted to reproduce this one, oldest first."""
    first = (job_events.c.attempt == 0, job_events.c.kind == JobState.QUEUED.value)
    named = job_events.c.detail["reproduces"].as_integer() == job_id
    return [row.job_id for row in conn.execute(select(job_events.c.job_id).where(*first, named))]


def record(
    conn: Connection, job_id: int, attempt: int, at: float, actor: str, kind: str, detail: Mapping[str, Any]
) -> None:
    row = {"job_id": job_id, "attempt": attempt, "at": at, "actor": actor, "kind": str(kind), "detail": dict(detail)}
    conn.execute(insert(job_events).values(row))
