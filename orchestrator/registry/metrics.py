"""Numbers by job, split, name and step. A step that is reported twice (a resumed attempt) keeps the last value.

Splits are train, validation and test; `base:<split>` holds the frozen base's own result on the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, and_, bindparam, delete, func, insert, select

from orchestrator.registry.tables import metrics

BASE = "base:"
_KEY = ("job_id", "split", "name", "step")


@dataclass(frozen=True)
class Point:
    split: str
    name: str
    step: int
    value: float | None  #: None stands for a value that is not a finite number


def put(conn: Connection, job_id: int, points: Iterable[Point]) -> None:
    """Insert or replace."""
    last = {(p.split, p.name, p.step): p for p in points}
    rows = [
        {"job_id": job_id, "split": p.split, "name": p.name, "step": p.step, "value": _finite(p.value)}
        for p in last.values()
    ]
    if not rows:
        return
    # In every database's own words an upsert is one statement; in the words that they share it is two.
    key = (metrics.c[name] == bindparam(f"this_{name}") for name in _KEY)
    conn.execute(delete(metrics).where(*key), [{f"this_{name}": row[name] for name in _KEY} for row in rows])
    conn.execute(insert(metrics), rows)


def latest(conn: Connection, job_ids: Iterable[int]) -> dict[int, dict[str, dict[str, float | None]]]:
    """job -> split -> name -> the value at its newest step."""
    ids = list(job_ids)
    newest = (
        select(metrics.c.job_id, metrics.c.split, metrics.c.name, func.max(metrics.c.step).label("step"))
        .where(metrics.c.job_id.in_(ids))
        .group_by(metrics.c.job_id, metrics.c.split, metrics.c.name)
        .subquery()
    )
    same = and_(*(metrics.c[name] == newest.c[name] for name in _KEY))
    query = select(metrics).join(newest, same).order_by(metrics.c.job_id, metrics.c.split, metrics.c.name)
    found: dict[int, dict[str, dict[str, float | None]]] = {}
    for row in conn.execute(query):
        found.setdefault(row.job_id, {}).setdefault(row.split, {})[row.name] = row.value
    return found


def series(conn: Connection, job_id: int, split: str, name: str) -> list[tuple[int, float | None]]:
    """(step, value) by step."""
    of = (metrics.c.job_id == job_id, metrics.c.split == split, metrics.c.name == name)
    query = select(metrics.c.step, metrics.c.value).where(*of).order_by(metrics.c.step)
    return [(row.step, row.value) for row in conn.execute(query)]


def names(conn: Connection, job_id: int) -> list[tuple[str, str]]:
    """Which (split, name) series a job has."""
    query = select(metrics.c.split, metrics.c.name).where(metrics.c.job_id == job_id).distinct()
    return sorted((row.split, row.name) for row in conn.execute(query))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
