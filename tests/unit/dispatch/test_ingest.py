"""What training reports reaches the registry once."""

from __future__ import annotations

from pathlib import Path

import pytest
from queue_helpers import add_jobs, get, open_registry

from orchestrator.dispatch.running import ingest
from orchestrator.dispatch.running.ingest import take_in
from orchestrator.events import EventWriter
from orchestrator.registry import history, jobs, metrics
from orchestrator.states import JobState


def test_a_warning_stands_in_the_jobs_history_once(home: Path) -> None:
    registry = open_registry(home)
    (job,) = add_jobs(registry)
    with registry.write() as conn:
        jobs.move(conn, job, 0, jobs.Move(JobState.STARTING), actor="test", at=1.0)
    with EventWriter(registry.paths.job(job).events, attempt=1) as events:
        events.write("warning", message="mlflow: no route to host; the job goes on without it")
        for _ in range(2):
            events.flush()
            take_in(registry, get(registry, job), actor="worker", at=2.0)
    with registry.read() as conn:
        found = [one for one in history.list_events(conn, job) if one.kind == "warning"]
    assert [(one.attempt, one.detail) for one in found] == [
        (1, {"message": "mlflow: no route to host; the job goes on without it"})
    ]
    assert get(registry, job).state is JobState.STARTING
    registry.close()


@pytest.mark.parametrize("at_once", [1, 700, 1 << 20])
def test_a_long_part_is_taken_in_piece_by_piece(home: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """As after days in which no worker was there."""
    monkeypatch.setattr(ingest, "AT_ONCE", at_once)
    registry = open_registry(home)
    (job,) = add_jobs(registry)
    with registry.write() as conn:
        jobs.move(conn, job, 0, jobs.Move(JobState.STARTING), actor="test", at=1.0)
    with EventWriter(registry.paths.job(job).events, attempt=1) as events:
        events.write("started", processes=1, device="cpu", resumed_from=0, steps=20)
        for step in range(1, 21):
            events.write("metric", step=step, split="train", values={"loss": float(step)})
        events.write("warning", message="once")
        events.write("stopped", step=20, why="asked")
    news = take_in(registry, get(registry, job), actor="worker", at=2.0)
    assert news is not None
    assert (news.ended, news.started, news.step, news.steps) == (True, True, 20, 20)
    assert take_in(registry, get(registry, job), actor="worker", at=3.0) is None
    found = get(registry, job)
    assert (found.state, found.step, found.events_offset) == (JobState.RUNNING, 20, events.path.stat().st_size)
    with registry.read() as conn:
        assert metrics.series(conn, job, "train", "loss") == [(step, float(step)) for step in range(1, 21)]
        assert [one.kind for one in history.list_events(conn, job)].count("warning") == 1
    registry.close()
