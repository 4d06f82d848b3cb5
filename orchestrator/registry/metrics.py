"""Numbers by job, split, name and step. A step that is reported twice (a resumed attempt) keeps the last value.

Splits are train, validation and test; `base:<split>` holds the frozen base's own result on the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Subquery, Table, and_, bindparam, delete, func, insert, or_, select

from orchestrator.registry.storage.ids import among
from orchestrator.registry.storage.tables import latest_metrics, metrics

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
    _replace(conn, metrics, rows, _KEY)
    _replace(conn, latest_metrics, _newest(conn, job_id, rows), _KEY[:3])


def latest(conn: Connection, job_ids: Iterable[int]) -> dict[int, dict[str, dict[str, float | None]]]:
    """job -> split -> name -> the value at its newest step."""
    query = select(latest_metrics).where(among(latest_metrics.c.job_id, job_ids))
    found: dict[int, dict[str, dict[str, float | None]]] = {}
    for row in conn.execute(query.order_by(*(latest_metrics.c[name] for name in _KEY[:3]))):
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


def stale_latest(conn: Connection) -> int:
    """How many series whose newest point stands in `latest_metrics` otherwise than in `metrics`, or not at all."""
    newest = _newest_of_all()
    same = and_(*(latest_metrics.c[name] == newest.c[name] for name in _KEY[:3]))
    value = or_(
        latest_metrics.c.value == newest.c.value, and_(latest_metrics.c.value.is_(None), newest.c.value.is_(None))
    )
    right = select(func.count()).select_from(newest.join(latest_metrics, same))
    right = right.where(latest_metrics.c.step == newest.c.step, value)
    points = conn.execute(select(func.count()).select_from(newest)).scalar() or 0
    kept = conn.execute(select(func.count()).select_from(latest_metrics)).scalar() or 0
    return int(max(points, kept) - (conn.execute(right).scalar() or 0))


def rebuild_latest(conn: Connection) -> None:
    conn.execute(delete(latest_metrics))
    newest = _newest_of_all()
    conn.execute(insert(latest_metrics).from_select([*_KEY, "value"], select(newest)))


def _newest_of_all() -> Subquery:
    last = (
        select(*(metrics.c[name] for name in _KEY[:3]), func.max(metrics.c.step).label("step"))
        .group_by(*(metrics.c[name] for name in _KEY[:3]))
        .subquery()
    )
    same = and_(*(metrics.c[name] == last.c[name] for name in _KEY))
    return select(metrics).join(last, same).subquery()


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _newest(conn: Connection, job_id: int, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the new points those that are now the newest of their series."""
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["step"]):
        last[row["split"], row["name"]] = row
    mine = latest_metrics.c.job_id == job_id
    known = {
        (row.split, row.name): row.step
        for row in conn.execute(
            select(latest_metrics.c.split, latest_metrics.c.name, latest_metrics.c.step).where(mine)
        )
    }
    return [row for series, row in last.items() if row["step"] >= known.get(series, row["step"])]


def _replace(conn: Connection, table: Table, rows: list[dict[str, Any]], key: Sequence[str]) -> None:
    """In every database's own words an upsert is one statement; in the words that they share it is two."""
    if rows:
        same = (table.c[name] == bindparam(f"this_{name}") for name in key)
        conn.execute(delete(table).where(*same), [{f"this_{name}": row[name] for name in key} for row in rows])
        conn.execute(insert(table), rows)
