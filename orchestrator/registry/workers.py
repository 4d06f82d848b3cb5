"""Workers: who places jobs on which slots, and who has been heard of lately."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select, update

from orchestrator.registry.storage.tables import workers

#: A worker beats every 5 s; after this long without a beat nobody counts on it.
SILENT_SECONDS = 12.0


@dataclass(frozen=True)
class Worker:
    id: int
    host: str
    pid: int
    pid_started: float
    boot_id: str
    slots: list[str]
    started_at: float
    heartbeat_at: float
    ended_at: float | None
    drained_by: str | None = None  #: who has asked it to start nothing more and to leave when its runs have ended


def register(
    conn: Connection, *, host: str, pid: int, pid_started: float, boot_id: str, slots: Sequence[str], at: float
) -> int:
    """Enter a worker. There is one per host and home: rows of earlier ones that were killed are closed."""
    conn.execute(update(workers).where(workers.c.host == host, workers.c.ended_at.is_(None)).values(ended_at=at))
    return _enter(conn, host=host, pid=pid, pid_started=pid_started, boot_id=boot_id, slots=list(slots), started_at=at)


def pass_by(conn: Connection, *, host: str, pid: int, pid_started: float, boot_id: str, at: float) -> int:
    """Enter somebody who claims slots once and has left: no worker, and nobody in whose place it comes."""
    return _enter(
        conn, host=host, pid=pid, pid_started=pid_started, boot_id=boot_id, slots=[], started_at=at, ended_at=at
    )  # fmt: skip


def beat(conn: Connection, worker_id: int, *, at: float) -> None:
    conn.execute(update(workers).where(workers.c.id == worker_id).values(heartbeat_at=at))


def drain(conn: Connection, host: str, *, by: str) -> int:
    """Ask the worker of this box to start nothing more and to leave; how many were asked."""
    here = (workers.c.host == host, workers.c.ended_at.is_(None))
    return conn.execute(update(workers).where(*here).values(drained_by=by)).rowcount


def drained_by(conn: Connection, worker_id: int) -> str | None:
    return conn.execute(select(workers.c.drained_by).where(workers.c.id == worker_id)).scalar()


def leave(conn: Connection, worker_id: int, *, at: float) -> None:
    conn.execute(update(workers).where(workers.c.id == worker_id).values(ended_at=at, heartbeat_at=at))


def newest(conn: Connection, host: str) -> Worker | None:
    """The last of this box that has not left, however long nobody has heard of it."""
    query = select(workers).where(workers.c.host == host, workers.c.ended_at.is_(None))
    row = conn.execute(query.order_by(workers.c.id.desc()).limit(1)).first()
    return None if row is None else Worker(**row._mapping)


def present(conn: Connection, *, now: float) -> list[Worker]:
    """Workers that have not left and have been heard of lately."""
    lately = workers.c.heartbeat_at.between(now - SILENT_SECONDS, now + SILENT_SECONDS)  # a clock may be set back
    query = select(workers).where(workers.c.ended_at.is_(None), lately)
    return [Worker(**row._mapping) for row in conn.execute(query.order_by(workers.c.id))]


def _enter(conn: Connection, *, started_at: float, **row: Any) -> int:
    result = conn.execute(insert(workers).values({**row, "started_at": started_at, "heartbeat_at": started_at}))
    return int(result.inserted_primary_key[0])  # type: ignore[index]
