"""Switches of the whole queue, by name: `paused`, and how far notifications have come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from orchestrator.registry.storage.tables import controls

PAUSED = "paused"  #: value: why (may be empty)
NOTIFIED = "notified"  #: value: the last event of `job_events` that has been taken up for notifications
UNTOLD = "untold"  #: value: earlier ones that are still to be told -> how often that was tried, by which ways


@dataclass(frozen=True)
class Control:
    name: str
    value: Any
    by: str
    at: float


def get(conn: Connection, name: str) -> Control | None:
    row = conn.execute(select(controls).where(controls.c.name == name)).first()
    return None if row is None else Control(**row._mapping)


def put(conn: Connection, name: str, value: Any, *, by: str, at: float) -> None:
    clear(conn, name)
    conn.execute(insert(controls).values(name=name, value=value, by=by, at=at))


def clear(conn: Connection, name: str) -> bool:
    """Whether it was set."""
    return conn.execute(delete(controls).where(controls.c.name == name)).rowcount > 0
