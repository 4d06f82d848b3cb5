"""`ptq retry`: queue failed or cancelled jobs again; they go on from their newest checkpoint."""

from __future__ import annotations

import time

import typer

from orchestrator.cli.common import SomeJobs
from orchestrator.cli.output import render


def register(app: typer.Typer) -> None:
    @app.command()
    def retry(
        jobs: SomeJobs,
    ) -> None:
        """Try failed or cancelled jobs again."""
        from orchestrator.cli.common import open_registry
        from orchestrator.cli.output.views import NO_WORKER, worker_is_here
        from orchestrator.dispatch.control import retry as retry_jobs

        registry = open_registry()
        for job_id in retry_jobs(registry, jobs, user=registry.settings.user, now=time.time()):
            render.say(f"job {job_id} queued")
        if not worker_is_here(registry):
            render.note(NO_WORKER)
