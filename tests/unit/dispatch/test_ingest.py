"""What training reports reaches the registry once."""

from __future__ import annotations

from pathlib import Path

from queue_helpers import add_jobs, get, open_registry

from orchestrator.dispatch.running.ingest import take_in
from orchestrator.events import EventWriter
from orchestrator.registry import history, jobs
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
