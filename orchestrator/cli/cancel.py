"""`ptq cancel`: take queued jobs out of the queue, ask live ones to stop. Works without a worker."""

from __future__ import annotations

import time

import typer

from orchestrator.cli.common import SomeJobs
from orchestrator.cli.output import render


def register(app: typer.Typer) -> None:
    @app.command()
    def cancel(
        jobs: SomeJobs,
    ) -> None:
        """Cancel jobs."""
        from orchestrator.cli.common import open_registry
        from orchestrator.dispatch.control import cancel as cancel_jobs
        from orchestrator.states import JobState

        registry = open_registry()
        before = cancel_jobs(registry, jobs, user=registry.settings.user, now=time.time())
        for job_id, state in before.items():
            if state is JobState.FINISHED:
                render.note(f"job {job_id} had finished already")
            else:
                render.say(f"job {job_id} {'cancelled' if state is JobState.QUEUED else 'stopping'}")
