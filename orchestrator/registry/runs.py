"""Runs and leases: who holds which slot of which box. The database itself refuses a second live owner of a slot.

A lease ends when its run has provably ended, never by its date: `expires_at` only says since when nobody has looked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.engine import Row

from orchestrator.errors import StaleAttempt
from orchestrator.registry import jobs as job_verbs
from orchestrator.registry import usage
from orchestrator.registry.storage.ids import among
from orchestrator.registry.storage.tables import jobs, leases, reservations, runs
from orchestrator.settings import Policy
from orchestrator.states import LIVE, JobState

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
    port: int | None = None


@dataclass(frozen=True)
class Lease:
    host: str
    slot: str
    run_id: int
    job_id: int | None  #: the first of the live jobs of its run, else the last job that the run hosted
    user: str | None
    since: float
    expires_at: float
    jobs: tuple[int, ...] = ()  #: all live jobs of its run


@dataclass(frozen=True)
class Claim:
    run_id: int
    attempt: int
    token: str
    port: int | None = None  #: for the rendezvous of its processes; no other open run of the box has it


@dataclass(frozen=True)
class Claimant:
    """The worker that claims."""

    worker_id: int
    host: str
    boot_id: str


def claim(
    conn: Connection,
    job_id: int,
    attempt: int,
    slots: Sequence[str],
    by: Claimant,
    *,
    token: str,
    at: float,
    port: int | None = None,
    alone: str = "",
) -> Claim | None:
    """Take a queued job and its slots, in the caller's one transaction; None when another was faster.

    `attempt` is the one under which the job was seen waiting; the claim's own is one higher. `alone`: why it shares
    nothing that runs, for whoever asks.
    """
    guard = (jobs.c.id == job_id, jobs.c.attempt == attempt, jobs.c.state == JobState.QUEUED.value)
    if conn.execute(select(jobs.c.id).where(*guard)).scalar() is None:
        return None
    held = (leases.c.released_at.is_(None), leases.c.host == by.host, leases.c.slot.in_(list(slots)))
    if conn.execute(select(leases.c.id).where(*held)).first() is not None:
        return None
    row = {"worker_id": by.worker_id, "host": by.host, "boot_id": by.boot_id, "token": token, "started_at": at}
    row["port"] = port
    run_id = int(conn.execute(insert(runs).values(row)).inserted_primary_key[0])  # type: ignore[index]
    for slot in slots:
        lease = {"run_id": run_id, "host": by.host, "slot": slot, "expires_at": at + LEASE_SECONDS}
        conn.execute(insert(leases).values(lease))
    try:
        taken = _start(conn, job_id, attempt, run_id, by, at=at, detail={"slots": list(slots), "alone": alone or None})
    except StaleAttempt:
        return None
    return Claim(run_id=run_id, attempt=taken, token=token, port=port)


def join(conn: Connection, job_id: int, attempt: int, run_id: int, by: Claimant, *, at: float) -> Claim | None:
    """Take a queued job into a run that holds its slots already, in the caller's one transaction.

    None when another was faster, or the run has ended, or is being ended because all its jobs were cancelled.
    """
    guard = (jobs.c.id == job_id, jobs.c.attempt == attempt, jobs.c.state == JobState.QUEUED.value)
    if conn.execute(select(jobs.c.id).where(*guard)).scalar() is None:
        return None
    run = get_run(conn, run_id)
    if run is None or run.ended_at is not None or (run.host, run.boot_id) != (by.host, by.boot_id):
        return None
    others = job_verbs.live_jobs_of(conn, run_id)
    if others and all(job.state is JobState.STOPPING for job in others):
        return None
    detail = {"joined": [job.id for job in others]}
    taken = _start(conn, job_id, attempt, run_id, by, at=at, detail=detail)
    return Claim(run_id=run_id, attempt=taken, token=run.token)


def _start(
    conn: Connection, job_id: int, attempt: int, run_id: int, by: Claimant, *, at: float, detail: Mapping[str, Any]
) -> int:
    to = job_verbs.Move(JobState.STARTING, detail={"run": run_id, **detail})
    taken = job_verbs.move(conn, job_id, attempt, to, actor=f"worker:{by.worker_id}", at=at)
    job_verbs.set_run(conn, job_id, taken, run_id)
    return taken


def end_run(
    conn: Connection,
    run_id: int,
    *,
    exit_record: Mapping[str, Any] | None,
    at: float,
    used_until: float | None = None,
    half_life: float = Policy.half_life,
) -> None:
    """Close the run and free its slots. Only for a run of which no process lives.

    `used_until`: when it was last known to live, where that may be long ago: nobody is charged for what came after.
    """
    open_run = (runs.c.id == run_id, runs.c.ended_at.is_(None))
    record = None if exit_record is None else dict(exit_record)
    conn.execute(update(runs).where(*open_run).values(ended_at=at, exit=record))
    release(conn, run_id, at=at, used_until=used_until, half_life=half_life)


def release(
    conn: Connection,
    run_id: int,
    *,
    at: float,
    used_until: float | None = None,
    up_since: float = 0.0,
    half_life: float = Policy.half_life,
) -> None:
    """Free the slots of a run; what it has taken of them since they were last charged is charged."""
    held = (leases.c.run_id == run_id, leases.c.released_at.is_(None))
    until = at if used_until is None else min(at, used_until)
    _charge(conn, held, since=up_since, until=until, at=at, half_life=half_life)
    conn.execute(update(leases).where(*held).values(released_at=at))


def renew(
    conn: Connection,
    host: str,
    *,
    at: float,
    up_since: float = 0.0,
    half_life: float = Policy.half_life,
    over: Collection[int] = (),
) -> None:
    """Say that somebody looks after this box's slots, and charge them to those who hold them.

    `up_since`: when the box was started: nobody is charged for the time that it was off. `over`: runs that are proven
    to have ended and are not closed yet; what they owe is settled when they are, until their end.
    """
    held = (leases.c.host == host, leases.c.released_at.is_(None), leases.c.run_id.not_in(list(over)))
    _charge(conn, held, since=up_since, until=at, at=at, half_life=half_life)
    conn.execute(update(leases).where(*held).values(expires_at=at + LEASE_SECONDS))


def _charge(conn: Connection, which: Sequence[Any], *, since: float, until: float, at: float, half_life: float) -> None:
    """A lease was last charged when it was last renewed: LEASE_SECONDS before it expires."""
    rows = conn.execute(select(leases.c.run_id, leases.c.expires_at).where(*which)).all()
    hosted = _hosted(conn, {row.run_id for row in rows})
    persons = _reserved(conn, {row.run_id for row in rows})
    shares: list[tuple[str, float]] = []
    for row in rows:
        jobs_here = hosted.get(row.run_id, [])
        users = [job.user for job in jobs_here if job.state in LIVE] or [job.user for job in jobs_here]
        users = users or persons.get(row.run_id, [])
        seconds = max(0.0, until - max(row.expires_at - LEASE_SECONDS, since))
        shares += [(user, seconds / len(users)) for user in users]
    usage.charge(conn, shares, half_life=half_life, at=at)


def _reserved(conn: Connection, ids: Collection[int]) -> dict[int, list[str]]:
    """run -> the person who holds it as a reservation."""
    query = select(reservations.c.run_id, reservations.c.user).where(among(reservations.c.run_id, ids))
    return {row.run_id: [row.user] for row in conn.execute(query)} if ids else {}


def ports(conn: Connection, host: str) -> set[int]:
    """Ports that open runs of this box have."""
    query = select(runs.c.port).where(runs.c.ended_at.is_(None), runs.c.host == host, runs.c.port.is_not(None))
    return set(conn.execute(query).scalars())


def get_run(conn: Connection, run_id: int) -> Run | None:
    row = conn.execute(select(runs).where(runs.c.id == run_id)).first()
    return None if row is None else _run(row)


def open_runs(conn: Connection, host: str) -> list[Run]:
    """Runs on this box that are not known to have ended."""
    query = select(runs).where(runs.c.ended_at.is_(None), runs.c.host == host).order_by(runs.c.id)
    return [_run(row) for row in conn.execute(query)]


def live_leases(conn: Connection, host: str | None = None) -> list[Lease]:
    """Slots that are held, with the jobs that hold each."""
    query = (
        select(leases.c.host, leases.c.slot, leases.c.run_id, runs.c.started_at, leases.c.expires_at)
        .join(runs, leases.c.run_id == runs.c.id)
        .where(leases.c.released_at.is_(None))
        .order_by(leases.c.host, leases.c.slot)
    )
    if host is not None:
        query = query.where(leases.c.host == host)
    rows = conn.execute(query).all()
    hosted = _hosted(conn, {row.run_id for row in rows})
    return [_lease(row, hosted.get(row.run_id, [])) for row in rows]


def live_slots(conn: Connection, host: str) -> tuple[int, ...]:
    """Which leases are live: a cheap sign of whether anything has changed."""
    held = (leases.c.released_at.is_(None), leases.c.host == host)
    return tuple(conn.execute(select(leases.c.id).where(*held).order_by(leases.c.id)).scalars())


def _hosted(conn: Connection, ids: Collection[int]) -> dict[int, list[Any]]:
    """The jobs whose last run these are, by run: live ones and those that have left and not started anew."""
    found: dict[int, list[Any]] = {}
    query = select(jobs.c.id, jobs.c.user, jobs.c.run_id, jobs.c.state).where(among(jobs.c.run_id, ids))
    for row in conn.execute(query.order_by(jobs.c.id)) if ids else ():
        found.setdefault(row.run_id, []).append(row)
    return found


def _lease(row: Any, hosted: Sequence[Any]) -> Lease:
    live = [job for job in hosted if job.state in LIVE]
    shown = live[0] if live else hosted[-1] if hosted else None
    return Lease(
        host=row.host, slot=row.slot, run_id=row.run_id,
        job_id=None if shown is None else shown.id, user=None if shown is None else shown.user,
        since=row.started_at, expires_at=row.expires_at, jobs=tuple(job.id for job in live),
    )  # fmt: skip


def _run(row: Row[Any]) -> Run:
    return Run(**row._mapping)
