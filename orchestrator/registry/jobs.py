"""Jobs: added once, changed by `move` alone, read as `Job`.

Every write for an attempt says `WHERE id = … AND attempt = …`: who no longer owns the job changes nothing and gets
`StaleAttempt`. An attempt's number grows at each claim and never shrinks.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Select, String, cast, func, insert, select, update
from sqlalchemy.engine import Row

from orchestrator.errors import NotFound, StaleAttempt
from orchestrator.registry.history import record
from orchestrator.registry.storage.ids import among
from orchestrator.registry.storage.tables import (
    artifacts,
    dataset_versions,
    datasets,
    dependencies,
    groups,
    job_events,
    jobs,
)
from orchestrator.states import LIVE, UNCOUNTED, JobResult, JobState, Reason, may_move


@dataclass(frozen=True)
class NewJob:
    """All that is fixed when a job is submitted."""

    name: str
    recipe: Mapping[str, Any]  #: a `recipe.schema.JobRecipe`
    source: str
    seed: int
    method: str
    base: Mapping[str, Any]  #: a `jobspec.BaseSpec`
    dataset_version_id: int
    slots: int
    priority: int
    max_attempts: int


@dataclass(frozen=True)
class Move:
    """What becomes of a job, and what its history says of that."""

    state: JobState
    result: JobResult | None = None  #: of a job that is finished now
    reason: Reason | None = None
    message: str | None = None
    counted: bool = True  #: False: a job that is queued again has this try for free
    not_before: float | None = None  #: and is not tried sooner
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    id: int
    group_id: int | None
    name: str
    user: str
    state: JobState
    result: JobResult | None
    reason: Reason | None
    message: str | None
    attempt: int
    counted_attempts: int
    max_attempts: int
    priority: int
    slots: int
    recipe: dict[str, Any]
    source: str
    command: list[str]
    seed: int
    method: str
    base: dict[str, Any]
    dataset_version_id: int
    dataset: str  #: NAME@VERSION
    dataset_digest: str
    run_id: int | None
    step: int
    steps: int | None
    events_offset: int
    submitted_at: float
    started_at: float | None
    finished_at: float | None
    uid: int | None  #: the account that may change it
    not_before: float | None  #: queued: not tried again before this moment
    artifact_id: int | None
    queued_at: float | None = None  #: since when it waits, where that is not since submission
    paused_by: str | None = None
    token: str | None = None  #: says which job it is, whatever its number; None: before tokens were kept
    after: tuple[int, ...] = ()


def add_group(conn: Connection, name: str, *, user: str, at: float, at_once: int | None = None) -> int:
    """`at_once`: how many of its jobs may run at a time."""
    row = {"name": name, "user": user, "submitted_at": at, "at_once": at_once}
    return _new_id(conn.execute(insert(groups).values(row)).inserted_primary_key)


def add_jobs(
    conn: Connection,
    new: Sequence[NewJob],
    *,
    user: str,
    command: Sequence[str],
    at: float,
    uid: int | None = None,
    group_id: int | None = None,
    after: Sequence[int] = (),
    after_any: Sequence[int] = (),
    reproduces: int | None = None,
) -> list[int]:
    """Queue jobs, each after the success of all of `after` and after any end of all of `after_any`; their ids.

    `reproduces`: the job that they repeat.
    """
    ids = []
    succeeded = set(after)
    before = list(dict.fromkeys((*after, *after_any)))
    for job in new:
        row = {**vars(job), "recipe": dict(job.recipe), "base": dict(job.base)}
        row |= {"token": uuid.uuid4().hex, "group_id": group_id, "user": user, "uid": uid}
        row |= {"command": list(command), "submitted_at": at}
        row |= {"state": JobState.QUEUED.value, "attempt": 0, "counted_attempts": 0, "step": 0, "events_offset": 0}
        job_id = _new_id(conn.execute(insert(jobs).values(row)).inserted_primary_key)
        if before:
            edges = [{"job_id": job_id, "after_id": other, "any_end": other not in succeeded} for other in before]
            conn.execute(insert(dependencies), edges)
        facts = {"after": list(after), "after_any": list(after_any), "reproduces": reproduces}
        detail = {key: value for key, value in facts.items() if value}
        record(conn, job_id, 0, at, f"user:{user}", JobState.QUEUED, detail)
        ids.append(job_id)
    return ids


def move(conn: Connection, job_id: int, attempt: int, to: Move, *, actor: str, at: float) -> int:
    """Change a job's state: the only function that does. Returns the job's attempt, which a claim has raised.

    Raises StaleAttempt when `attempt` does not own the job any more, ValueError for a move that `states.MOVES` lacks.
    """
    old = state_of(conn, job_id, attempt)
    if not may_move(old, to.state):
        raise ValueError(f"job {job_id}: {old} -> {to.state} is not an allowed move")
    if (to.result is not None) != (to.state is JobState.FINISHED):
        raise ValueError(f"job {job_id}: a result belongs to a finished job, and only to it")
    values: dict[str, Any] = {"state": to.state.value, "result": to.result, "reason": to.reason, "message": to.message}
    values |= {"not_before": to.not_before, **_side_effects(old, to, at)}
    guard = (jobs.c.id == job_id, jobs.c.attempt == attempt, jobs.c.state == old.value)
    if conn.execute(update(jobs).where(*guard).values(values)).rowcount != 1:
        raise StaleAttempt(where=f"job {job_id}, attempt {attempt}")
    now_attempt = attempt + (to.state is JobState.STARTING)
    facts = {"from": old, "result": to.result, "reason": to.reason, "message": to.message, **to.detail}
    record(conn, job_id, now_attempt, at, actor, to.state, {k: v for k, v in facts.items() if v is not None})
    return now_attempt


def state_of(conn: Connection, job_id: int, attempt: int) -> JobState:
    """Raises StaleAttempt when `attempt` does not own the job any more."""
    found = conn.execute(select(jobs.c.state).where(jobs.c.id == job_id, jobs.c.attempt == attempt)).scalar()
    if found is None:
        raise StaleAttempt(where=f"job {job_id}, attempt {attempt}")
    return JobState(found)


def _side_effects(old: JobState, to: Move, at: float) -> dict[str, Any]:
    if to.state is JobState.STARTING:  # counted here: a job that kills its worker is counted too
        started = func.coalesce(jobs.c.started_at, at)
        return {"attempt": jobs.c.attempt + 1, "counted_attempts": jobs.c.counted_attempts + 1, "started_at": started}
    if to.state is JobState.FINISHED:
        return {"finished_at": at}
    if to.state is not JobState.QUEUED:
        return {}
    if old is JobState.FINISHED:
        return {"counted_attempts": 0, "started_at": None, "finished_at": None, "queued_at": at}
    had_its_turn = {"queued_at": at} if to.reason is Reason.PREEMPTED else {}  # it waits as a new job does
    free = not to.counted or to.reason in UNCOUNTED
    return had_its_turn | ({"counted_attempts": jobs.c.counted_attempts - 1} if free else {})


def set_run(conn: Connection, job_id: int, attempt: int, run_id: int) -> None:
    _guarded(conn, job_id, attempt, {"run_id": run_id})


def set_progress(
    conn: Connection, job_id: int, attempt: int, *, step: int, steps: int | None, events_offset: int
) -> None:
    """How far training is, and how much of its events has been taken in."""
    _guarded(conn, job_id, attempt, {"step": step, "steps": steps, "events_offset": events_offset})


def get_job(conn: Connection, job_id: int) -> Job:
    found = list_jobs(conn, ids=[job_id])
    if not found:
        raise _no_such(f"job {job_id}")
    return found[0]


def list_jobs(
    conn: Connection, *, ids: Iterable[int] | None = None, states: Iterable[JobState] | None = None
) -> list[Job]:
    """Jobs by id, all or those asked for."""
    query = _SELECT.order_by(jobs.c.id)
    if ids is not None:
        query = query.where(among(jobs.c.id, ids))
    if states is not None:
        query = query.where(jobs.c.state.in_([state.value for state in states]))
    rows = conn.execute(query).all()
    after = _after(conn, [row.id for row in rows])
    return [_job(row, after.get(row.id, ())) for row in rows]


@dataclass(frozen=True)
class Submitted:
    """What a job was submitted with; it never changes."""

    user: str
    recipe: dict[str, Any]
    base: dict[str, Any]
    dataset_digest: str = ""
    rows: int = 0  #: to train on
    fields: int = 1  #: of each row


def submitted(conn: Connection, ids: Iterable[int]) -> dict[int, Submitted]:
    wanted = list(ids)
    if not wanted:
        return {}
    mine = (jobs.c.id, jobs.c.user, jobs.c.recipe, jobs.c.base)
    data = (dataset_versions.c.digest, dataset_versions.c.splits, dataset_versions.c.fields)
    joined = jobs.join(dataset_versions, jobs.c.dataset_version_id == dataset_versions.c.id)
    query = select(*mine, *data).select_from(joined).where(among(jobs.c.id, wanted))
    return {
        row.id: Submitted(row.user, row.recipe, row.base, row.digest, int(row.splits.get("train", 0)), len(row.fields))
        for row in conn.execute(query)
    }


def recently_finished(conn: Connection, limit: int) -> list[Job]:
    newest = select(jobs.c.id).where(jobs.c.state == JobState.FINISHED.value)
    ids = conn.execute(newest.order_by(jobs.c.finished_at.desc(), jobs.c.id.desc()).limit(limit)).scalars()
    return list_jobs(conn, ids=ids.all())


def finished_since(conn: Connection, event: int, *, limit: int) -> list[tuple[int, Job]]:
    """Jobs that have finished after this event, with the events that say so, oldest first."""
    query = select(job_events.c.id, job_events.c.job_id).where(
        job_events.c.id > event, job_events.c.kind == JobState.FINISHED.value
    )
    return _with_jobs(conn, query.order_by(job_events.c.id).limit(limit))


def finished_at_events(conn: Connection, events: Iterable[int]) -> list[tuple[int, Job]]:
    """The jobs of these events, oldest first."""
    query = select(job_events.c.id, job_events.c.job_id).where(among(job_events.c.id, events))
    return _with_jobs(conn, query.order_by(job_events.c.id))


def _with_jobs(conn: Connection, query: Select[Any]) -> list[tuple[int, Job]]:
    rows = conn.execute(query).all()
    found = {job.id: job for job in list_jobs(conn, ids={row.job_id for row in rows})}
    return [(row.id, found[row.job_id]) for row in rows]


def live_jobs_of(conn: Connection, run_id: int) -> list[Job]:
    ids = conn.execute(select(jobs.c.id).where(jobs.c.run_id == run_id, jobs.c.state.in_(sorted(LIVE)))).scalars()
    return list_jobs(conn, ids=ids.all())


def endings(conn: Connection, ids: Iterable[int]) -> dict[int, JobResult | None]:
    """How jobs ended; None for those that have not."""
    query = select(jobs.c.id, jobs.c.result).where(among(jobs.c.id, ids))
    return {row.id: None if row.result is None else JobResult(row.result) for row in conn.execute(query)}


def resolve(conn: Connection, references: Sequence[str]) -> list[int]:
    """Job ids for what a person types: `3`, or a whole group as `g12`. Raises NotFound."""
    ids: list[int] = []
    for reference in references:
        match = re.fullmatch(r"(g?)([1-9][0-9]{0,17})", reference)
        if match is None:
            raise _no_such(f"job {reference!r}")
        column = jobs.c.group_id if match[1] else jobs.c.id
        found = conn.execute(select(jobs.c.id).where(column == int(match[2])).order_by(jobs.c.id)).scalars().all()
        if not found:
            raise _no_such(f"group {reference}" if match[1] else f"job {reference}")
        ids += found
    return list(dict.fromkeys(ids))


def completions(conn: Connection, start: str, *, limit: int) -> list[tuple[str, str]]:
    """(id or group, what it is) for a shell that completes a name beginning so: the newest first."""
    wanted = start.removeprefix("g")
    if wanted and not wanted.isdecimal():
        return []
    found = []
    if not start.startswith("g"):
        state = func.coalesce(jobs.c.result, jobs.c.state).label("state")
        named = select(jobs.c.id, jobs.c.name, jobs.c.user, state).where(cast(jobs.c.id, String).startswith(wanted))
        rows = conn.execute(named.order_by(jobs.c.id.desc()).limit(limit))
        found = [(str(row.id), f"{row.name}, {row.user}, {row.state}") for row in rows]
    several = select(groups).where(cast(groups.c.id, String).startswith(wanted))
    if start.startswith("g") or not start:
        rows = conn.execute(several.order_by(groups.c.id.desc()).limit(limit))
        found += [(f"g{row.id}", f"{row.name}, {row.user}") for row in rows]
    return found


def company_of(conn: Connection, job_id: int) -> list[int]:
    """The other jobs whose last run was this job's."""
    run = select(jobs.c.run_id).where(jobs.c.id == job_id).scalar_subquery()
    others = select(jobs.c.id).where(jobs.c.run_id == run, jobs.c.id != job_id).order_by(jobs.c.id)
    return list(conn.execute(others).scalars())


_SELECT = (
    select(
        jobs,
        (datasets.c.name).label("dataset_name"),
        dataset_versions.c.version.label("dataset_version"),
        dataset_versions.c.digest.label("dataset_digest"),
        artifacts.c.id.label("artifact_id"),
    )
    .join_from(jobs, dataset_versions, jobs.c.dataset_version_id == dataset_versions.c.id)
    .join(datasets, dataset_versions.c.dataset_id == datasets.c.id)
    .outerjoin(artifacts, artifacts.c.job_id == jobs.c.id)
)


def _job(row: Row[Any], after: tuple[int, ...]) -> Job:
    values = dict(row._mapping)
    values["dataset"] = f"{values.pop('dataset_name')}@{values.pop('dataset_version')}"
    values["state"] = JobState(values["state"])
    values["result"] = None if values["result"] is None else JobResult(values["result"])
    values["reason"] = None if values["reason"] is None else Reason(values["reason"])
    return Job(**values, after=after)


def _after(conn: Connection, ids: list[int]) -> dict[int, tuple[int, ...]]:
    found: dict[int, tuple[int, ...]] = {}
    query = select(dependencies).where(among(dependencies.c.job_id, ids)).order_by(dependencies.c.after_id)
    for row in conn.execute(query):
        found[row.job_id] = (*found.get(row.job_id, ()), row.after_id)
    return found


def _guarded(conn: Connection, job_id: int, attempt: int, values: dict[str, Any]) -> None:
    guard = (jobs.c.id == job_id, jobs.c.attempt == attempt, jobs.c.state.in_(sorted(LIVE)))
    if conn.execute(update(jobs).where(*guard).values(values)).rowcount != 1:
        raise StaleAttempt(where=f"job {job_id}, attempt {attempt}")


def _new_id(key: Any) -> int:
    return int(key[0])


def _no_such(what: str) -> NotFound:
    return NotFound(f"there is no {what}", hint="`ptq status --all` lists every job")
