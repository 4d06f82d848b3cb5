"""Runs and leases: who holds which slot of which box. The database itself refuses a second live owner of a slot.

A lease ends when its run has provably ended, never by its date: `expires_at` only says since when nobody has looked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.engine import Row

from orchestrator.errors import StaleAttempt
from orchestrator.registry import jobs as job_verbs
from orchestrator.registry.tables import jobs, leases, runs
from orchestrator.states import JobState

LEASE_SECONDS = 30.0


@dataclass(frozen=True)
class Run:
    id: int
    worker_id: int
    host: str
    boot_id: str
    token: str
    started_at: float
    ended_at: float | None
    exit: dict[str, Any] | None


@dataclass(frozen=True)
class Lease:
    host: str
    slot: str
    run_id: int
    job_id: int | None
    user: str | None
    since: float
    expires_at: float


@dataclass(frozen=True)
class Claim:
    run_id: int
    attempt: int
    token: str


@dataclass(frozen=True)
class Claimant:
    """The worker that claims."""

    worker_id: int
    host: str
    boot_id: str


def claim(
    conn: Connection, job_id: int, attempt: int, slots: Sequence[str], by: Claimant, *, token: str, at: float
) -> Claim | None:
    """Take a queued job and its slots, in the caller's one transaction; None when another was faster.

    `attempt` is the one under which the job was seen waiting; the claim's own is one higher.
    """
    guard = (jobs.c.id == job_id, jobs.c.attempt == attempt, jobs.c.state == JobState.QUEUED.value)
    if conn.execute(select(jobs.c.id).where(*guard)).scalar() is None:
        return None
    live = (leases.c.released_at.is_(None), leases.c.host == by.host, leases.c.slot.in_(list(slots)))
    if conn.execute(select(leases.c.id).where(*live)).first() is not None:
        return None
    row = {"worker_id": by.worker_id, "host": by.host, "boot_id": by.boot_id, "token": token, "started_at": at}
    run_id = int(conn.execute(insert(runs).values(row)).inserted_primary_key[0])  # type: ignore[index]
    for slot in slots:
        lease = {"run_id": run_id, "host": by.host, "slot": slot, "expires_at": at + LEASE_SECONDS}
        conn.execute(insert(leases).values(lease))
    try:
        taken = job_verbs.move(
            conn, job_id, attempt, JobState.STARTING,
            actor=f"worker:{by.worker_id}", at=at, detail={"run": run_id, "slots": list(slots)},
        )  # fmt: skip
    except StaleAttempt:
        return None
    job_verbs.set_run(conn, job_id, taken, run_id)
    return Claim(run_id=run_id, attempt=taken, token=token)


def end_run(conn: Connection, run_id: int, *, exit_record: Mapping[str, Any] | None, at: float) -> None:
    """Close the run and free its slots. Only for a run of which no process lives."""
    open_run = (runs.c.id == run_id, runs.c.ended_at.is_(None))
    record = None if exit_record is None else dict(exit_record)
    conn.execute(update(runs).where(*open_run).values(ended_at=at, exit=record))
    held = (leases.c.run_id == run_id, leases.c.released_at.is_(None))
    conn.execute(update(leases).where(*held).values(released_at=at))


def renew(conn: Connection, host: str, *, at: float) -> None:
    held = (leases.c.host == host, leases.c.released_at.is_(None))
    conn.execute(update(leases).where(*held).values(expires_at=at + LEASE_SECONDS))


def get_run(conn: Connection, run_id: int) -> Run | None:
    row = conn.execute(select(runs).where(runs.c.id == run_id)).first()
    return None if row is None else _run(row)


def open_runs(conn: Connection, host: str) -> list[Run]:
    """Runs on this box that are not known to have ended."""
    query = select(runs).where(runs.c.ended_at.is_(None), runs.c.host == host).order_by(runs.c.id)
    return [_run(row) for row in conn.execute(query)]


def live_leases(conn: Connection, host: str | None = None) -> list[Lease]:
    """Slots that are held, with the job that holds each."""
    query = (
        select(
            leases.c.host,
            leases.c.slot,
            leases.c.run_id,
            jobs.c.id,
            jobs.c.user,
            runs.c.started_at,
            leases.c.expires_at,
        )
        .join(runs, leases.c.run_id == runs.c.id)
        .outerjoin(jobs, jobs.c.run_id == runs.c.id)
        .where(leases.c.released_at.is_(None))
        .order_by(leases.c.host, leases.c.slot, jobs.c.id)
    )
    if host is not None:
        query = query.where(leases.c.host == host)
    return [Lease(*row) for row in conn.execute(query)]


def _run(row: Row[Any]) -> Run:
    return Run(**row._mapping)
