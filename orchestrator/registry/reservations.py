"""Reservations: a person takes slots through the queue, for work by hand.

One that waits stands in line like a job, under minus its number. When it starts, a run without any process holds its
leases, so that the database itself keeps jobs off those slots.

One with a holder belongs to a command (`ptq predict --gpu`): it lasts as long as that process does, and `seconds` is
only for planning; where nobody can see whether it lives, they count.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, select, update

from orchestrator.errors import NotFound
from orchestrator.registry import runs as run_verbs
from orchestrator.registry.queue import Waiting
from orchestrator.registry.runs import Claimant
from orchestrator.registry.storage.tables import leases, reservations, runs
from orchestrator.settings import Policy


@dataclass(frozen=True)
class Reservation:
    id: int
    user: str
    uid: int  #: the account that may release it
    slots: int
    seconds: float
    note: str
    submitted_at: float
    started_at: float | None
    run_id: int | None
    ended_at: float | None
    ended_by: str | None
    holder: str | None = None  #: the process that it ends with

    @property
    def until(self) -> float | None:
        return None if self.started_at is None else self.started_at + self.seconds


def add(
    conn: Connection,
    *,
    user: str,
    uid: int,
    slots: int,
    seconds: float,
    note: str,
    at: float,
    holder: str | None = None,
) -> int:
    row = {"user": user, "uid": uid, "slots": slots, "seconds": seconds, "note": note, "submitted_at": at}
    row["holder"] = holder
    return int(conn.execute(insert(reservations).values(row)).inserted_primary_key[0])  # type: ignore[index]


def get(conn: Connection, number: int) -> Reservation:
    row = conn.execute(select(reservations).where(reservations.c.id == number)).first()
    if row is None:
        raise NotFound(f"there is no reservation r{number}", hint="`ptq status` shows those that there are")
    return Reservation(**row._mapping)


def unfinished(conn: Connection) -> list[Reservation]:
    """Those that wait and those that hold slots, oldest first."""
    query = select(reservations).where(reservations.c.ended_at.is_(None)).order_by(reservations.c.id)
    return [Reservation(**row._mapping) for row in conn.execute(query)]


def newest(conn: Connection) -> tuple[int, int]:
    """Changes whenever a reservation is made or ends."""
    count = select(func.coalesce(func.max(reservations.c.id), 0), func.count(reservations.c.ended_at))
    first, second = conn.execute(count).one()
    return int(first), int(second)


def in_line(found: Sequence[Reservation], *, priority: int) -> list[Waiting]:
    """Those that wait, as the scheduler sees them."""
    return [
        Waiting(-one.id, 0, priority, one.slots, user=one.user, since=one.submitted_at, time_limit=one.seconds)
        for one in found
        if one.started_at is None
    ]


def start(conn: Connection, number: int, slots: Sequence[str], by: Claimant, *, at: float) -> bool:
    """Give it its slots, in the caller's one transaction; False when it was released, or another was faster."""
    one = get(conn, number)
    if one.ended_at is not None or one.started_at is not None:
        return False
    held = (leases.c.released_at.is_(None), leases.c.host == by.host, leases.c.slot.in_(list(slots)))
    if conn.execute(select(leases.c.id).where(*held)).first() is not None:
        return False
    row = {"worker_id": by.worker_id, "host": by.host, "boot_id": by.boot_id, "token": uuid.uuid4().hex}
    row |= {"started_at": at, "ended_at": at}  # ended: it has no process that anybody would have to look after
    run_id = int(conn.execute(insert(runs).values(row)).inserted_primary_key[0])  # type: ignore[index]
    for slot in slots:
        lease = {"run_id": run_id, "host": by.host, "slot": slot, "expires_at": at + run_verbs.LEASE_SECONDS}
        conn.execute(insert(leases).values(lease))
    conn.execute(update(reservations).where(reservations.c.id == number).values(started_at=at, run_id=run_id))
    return True


def prolong(conn: Connection, number: int, seconds: float) -> None:
    """Plan with another length."""
    conn.execute(update(reservations).where(reservations.c.id == number).values(seconds=seconds))


def end(
    conn: Connection,
    number: int,
    *,
    by: str,
    at: float,
    unseen: bool = False,
    up_since: float = 0.0,
    half_life: float = Policy.half_life,
) -> bool:
    """Take it out of the line, or free its slots; False when it had ended already.

    `unseen`: it was over before anybody looked: nobody is charged for more than was planned. `up_since`: when the box
    was started: nor for the time that it was off.
    """
    one = get(conn, number)
    if one.ended_at is not None:
        return False
    conn.execute(update(reservations).where(reservations.c.id == number).values(ended_at=at, ended_by=by))
    if one.run_id is not None:
        until = one.until if one.holder is None or unseen else None
        run_verbs.release(conn, one.run_id, at=at, used_until=until, up_since=up_since, half_life=half_life)
    return True


def slots_of(conn: Connection, one: Reservation) -> list[str]:
    query = select(leases.c.slot).where(leases.c.run_id == one.run_id).order_by(leases.c.slot)
    return [] if one.run_id is None else list(conn.execute(query).scalars())
