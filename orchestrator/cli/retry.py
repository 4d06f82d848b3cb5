"""`ptq retry`: queue failed or cancelled jobs again; they go on from their newest checkpoint."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from orchestrator.cli import render


def register(app: typer.Typer) -> None:
    @app.command()
    def retry(jobs: Annotated[list[str], typer.Argument(metavar="JOB...", help="ids, or groups as g12")]) -> None:
        """Try failed or cancelled jobs again."""
        from orchestrator.cli.views import NO_WORKER, open_registry, worker_is_here
        from orchestrator.dispatch.control import retry as retry_jobs

        registry = open_registry()
        for job_id in retry_jobs(registry, jobs, user=registry.settings.user, now=time.time()):
            render.say(f"job {job_id} queued")
        if not worker_is_here(registry):
            render.note(NO_WORKER)
