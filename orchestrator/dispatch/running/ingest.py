"""Taking in what training reports: `events.jsonl`, by byte offset, into the registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from orchestrator.errors import StaleAttempt
from orchestrator.events import LAST_WORDS, read_events
from orchestrator.registry import history, jobs, metrics
from orchestrator.registry.jobs import Job
from orchestrator.registry.metrics import BASE, Point
from orchestrator.registry.storage.engine import Registry
from orchestrator.states import JobState

if TYPE_CHECKING:
    from sqlalchemy import Connection


AT_ONCE = 8 << 20  #: bytes of events, some 30,000 steps: one transaction


@dataclass
class News:
    """What a batch of events says about one attempt."""

    step: int
    steps: int | None
    started: bool = False
    resumed_from: int = 0
    ended: bool = False  #: it says how it ended (events `artifact`, `failed`, `stopped`)
    points: list[Point] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def take_in(registry: Registry, job: Job, *, actor: str, at: float) -> News | None:
    """Bring the registry up to date with the job's events; what is new (of a long part, its end), or None.

    Numbers and the new offset are one transaction: a worker that is killed in between has taken in nothing of them.
    """
    path = registry.paths.job(job.id).events
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return None
    known = job.events_offset
    start = known if size >= known else 0  # shorter: the folder was removed and made anew
    found = None
    while True:
        events, offset = read_events(path, start, most=AT_ONCE)
        if offset == known:
            return found
        found = digest(events, job, found)
        with registry.write() as conn:
            try:
                _store(conn, job, found, offset, actor=actor, at=at)
            except StaleAttempt:
                return None
        known = start = offset


def digest(events: Sequence[Mapping[str, Any]], job: Job, before: News | None = None) -> News:
    """The events of the job's own attempt; an earlier attempt's late words do not count.

    `before`: what the events before these have said.
    """
    found = News(step=job.step, steps=job.steps) if before is None else replace(before, points=[], warnings=[])
    for event in events:
        if event.get("attempt") != job.attempt:
            continue
        try:
            _read(event, found)
        except (KeyError, TypeError, ValueError, AttributeError):  # a line that is not as `events` says
            continue
    return found


def _read(event: Mapping[str, Any], found: News) -> None:
    kind = event["kind"]
    if kind == "started":
        found.started = True
        found.step, found.steps = int(event["resumed_from"] or 0), _maybe(event["steps"])
        found.resumed_from = found.step
    elif kind == "metric":
        step = int(event["step"])
        found.points += _points(event["split"], step, event["values"])
        found.step = max(found.step, step)
    elif kind == "progress":
        found.step, found.steps = int(event["step"]), _maybe(event["steps"])
    elif kind == "baseline":
        found.points += _points(f"{BASE}{event['split']}", 0, event["values"])
    elif kind == "warning":
        found.warnings.append(str(event["message"]))
    elif kind in LAST_WORDS:
        found.ended = True


def _points(split: str, step: int, values: Mapping[str, Any]) -> list[Point]:
    return [Point(split, name, step, None if value is None else float(value)) for name, value in values.items()]


def _maybe(value: Any) -> int | None:
    return None if value is None else int(value)


def _store(conn: Connection, job: Job, found: News, offset: int, *, actor: str, at: float) -> None:
    jobs.set_progress(
        conn, job.id, job.attempt, step=found.step, steps=found.steps, events_offset=offset,
    )  # fmt: skip
    metrics.put(conn, job.id, found.points)
    for message in found.warnings:
        history.note(conn, job.id, job.attempt, actor=actor, at=at, kind="warning", detail={"message": message})
    if found.started and jobs.get_job(conn, job.id).state is JobState.STARTING:
        to = jobs.Move(JobState.RUNNING, detail={"step": found.resumed_from})
        jobs.move(conn, job.id, job.attempt, to, actor=actor, at=at)
