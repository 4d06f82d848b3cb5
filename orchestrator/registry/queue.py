"""Who waits: the queue as the scheduler reads it, and the jobs that a person keeps from starting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, and_, case, func, not_, or_, select, update
from sqlalchemy.engine import Row

from orchestrator.cost import Cost, Load
from orchestrator.registry.history import record
from orchestrator.registry.storage.ids import among
from orchestrator.registry.storage.tables import dependencies, groups, jobs
from orchestrator.states import JobResult, JobState


@dataclass(frozen=True)
class Waiting:
    """What the scheduler needs to know of a queued job, or of a reservation that waits."""

    id: int  #: of a reservation: minus its number
    attempt: int
    priority: int
    slots: int
    after: tuple[int, ...] = ()  #: but for those whose end it need not wait for any more
    step: int = 0
    counted_attempts: int = 0
    max_attempts: int = 1
    key: str | None = None  #: jobs with equal keys may share a run (see dispatch.scheduling.fusing); None: only alone
    alone: str = ""  #: why it shares no run, where it may not
    load: Load = field(default_factory=Load)  #: what it adds to a step, estimated
    cost: Cost | None = None  #: of steps on its base here, where that has been measured
    steps: int | None = None  #: still to do, where that is known
    not_before: float | None = None  #: see `Job`
    user: str = ""
    since: float = 0.0  #: when it was queued; again, if it has had a turn since
    time_limit: float | None = None
    group: int | None = None
    at_once: int | None = None  #: how many jobs of its group may run at a time
    after_any: frozenset[int] = frozenset()  #: those of `after` of which any end will do
    paused_by: str = ""


#: Of each user's group, the scheduler looks at the first so many: more cannot start at once.
DEEP = 300


def waiting_jobs(conn: Connection, *, gain: float = 0.0, deep: int | None = None) -> list[Waiting]:
    """The queue, without the bulk of its jobs.

    `deep`: only the first so many of each user and group, by priority and age (`gain` points a second); those that
    wait for other jobs or are paused come last.
    """
    since = func.coalesce(jobs.c.queued_at, jobs.c.submitted_at)
    names = ("id", "attempt", "priority", "slots", "step", "counted_attempts", "max_attempts", "user", "not_before")
    columns = [*(jobs.c[name] for name in names), since.label("since"), jobs.c.group_id.label("group")]
    columns += [func.coalesce(jobs.c.paused_by, "").label("paused_by")]
    of_queued = jobs.c.state == JobState.QUEUED.value
    query = select(*columns).where(of_queued)
    if deep is not None:
        kept = case((or_(jobs.c.paused_by.is_not(None), _waits_for_another()), 1), else_=0)
        had_no_turn = case((jobs.c.attempt == 0, 1), else_=0)  # the others go on first: see dispatch.scheduling.line
        place = func.row_number().over(
            partition_by=(jobs.c.user, jobs.c.group_id),
            order_by=(kept, had_no_turn, since * gain - jobs.c.priority, jobs.c.id),
        )
        line = select(jobs.c.id, place.label("place")).where(of_queued).subquery()
        query = query.join(line, line.c.id == jobs.c.id).where(line.c.place <= deep)
    rows = conn.execute(query.order_by(jobs.c.id)).all()
    if not rows:
        return []
    after: dict[int, list[Any]] = {}
    for edge in conn.execute(_edges_that_count([row.id for row in rows])):
        after.setdefault(edge.job_id, []).append(edge)
    capped = select(groups.c.id, groups.c.at_once).where(groups.c.at_once.is_not(None))
    caps = {row.id: row.at_once for row in conn.execute(capped)}
    return [_waiting(row, after.get(row.id, ()), caps.get(row.group)) for row in rows]


def _edges_that_count(ids: Sequence[int]) -> Any:
    """Without those that nobody waits for any more: a job may come after a thousand others."""
    other = jobs.alias()
    ended_well = and_(
        other.c.state == JobState.FINISHED.value,
        or_(dependencies.c.any_end, other.c.result == JobResult.SUCCEEDED.value),
    )
    found = select(dependencies).join(other, dependencies.c.after_id == other.c.id)
    return found.where(among(dependencies.c.job_id, ids), not_(ended_well)).order_by(dependencies.c.after_id)


def _waits_for_another() -> Any:
    other = jobs.alias()
    pending = (dependencies.c.job_id == jobs.c.id, other.c.state != JobState.FINISHED.value)
    return select(dependencies.c.job_id).join(other, dependencies.c.after_id == other.c.id).where(*pending).exists()


def _waiting(row: Row[Any], edges: Sequence[Any], at_once: int | None) -> Waiting:
    any_end = frozenset(edge.after_id for edge in edges if edge.any_end)
    return Waiting(
        **row._mapping, after=tuple(edge.after_id for edge in edges), after_any=any_end, at_once=at_once
    )  # fmt: skip


def pause(conn: Connection, ids: Iterable[int], *, user: str, at: float) -> list[int]:
    """Keep jobs that have not finished from starting (again) until they are resumed; those not paused already."""
    return _set_paused(conn, ids, jobs.c.paused_by.is_(None), user, f"user:{user}", "paused", at)


def resume(conn: Connection, ids: Iterable[int], *, user: str, at: float) -> list[int]:
    return _set_paused(conn, ids, jobs.c.paused_by.is_not(None), None, f"user:{user}", "resumed", at)


def _set_paused(
    conn: Connection, ids: Iterable[int], which: Any, value: str | None, actor: str, kind: str, at: float
) -> list[int]:
    guard = (among(jobs.c.id, ids), jobs.c.state != JobState.FINISHED.value, which)
    found = conn.execute(select(jobs.c.id, jobs.c.attempt).where(*guard).order_by(jobs.c.id)).all()
    for row in found:
        conn.execute(update(jobs).where(jobs.c.id == row.id).values(paused_by=value))
        record(conn, row.id, row.attempt, at, actor, kind, {})
    return [row.id for row in found]


def count_queued(conn: Connection) -> int:
    return conn.execute(select(func.count()).where(jobs.c.state == JobState.QUEUED.value)).scalar() or 0
