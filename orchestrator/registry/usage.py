"""What each user has taken of the boxes: slot-seconds that count half after a half-life.

Every lease is charged when it is renewed (every few seconds) and when it is released, to the users of the jobs that
its run hosts, in equal parts. One row a user; nothing is ever summed over the history.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, insert, select, update

from orchestrator.registry.storage.tables import usage


def charge(conn: Connection, shares: Iterable[tuple[str, float]], *, half_life: float, at: float) -> None:
    """Add slot-seconds to users' accounts."""
    sums: dict[str, float] = {}
    for user, seconds in shares:
        sums[user] = sums.get(user, 0.0) + seconds
    for user, seconds in sums.items():
        if not seconds:
            continue
        row = conn.execute(select(usage.c.seconds, usage.c.at).where(usage.c.user == user)).first()
        if row is None:
            conn.execute(insert(usage).values(user=user, seconds=seconds, at=at))
            continue
        # A clock that was set back takes nothing away, and does not decay anything twice when it is put right. One that
        # had jumped further ahead than a half-life was wrong then: waiting for that day would decay nothing until it.
        moment = at if row.at - at > half_life else max(at, row.at)
        kept = decayed(row.seconds, moment - row.at, half_life)
        conn.execute(update(usage).where(usage.c.user == user).values(seconds=kept + seconds, at=moment))


def used(conn: Connection, *, half_life: float, now: float) -> dict[str, float]:
    """user -> slot-seconds, as they count now."""
    return {row.user: decayed(row.seconds, now - row.at, half_life) for row in conn.execute(select(usage))}


def decayed(seconds: float, age: float, half_life: float) -> float:
    return float(seconds * 2.0 ** (-max(0.0, age) / half_life))
