"""What a job's program and a run's supervisor are asked to do: files in their folders. Needs no worker."""

from __future__ import annotations

from orchestrator.paths import HomePaths, RunPaths, read_json, write_json
from orchestrator.registry.jobs import Job


def request_leave(paths: HomePaths, job: Job, why: str = "cancel") -> None:
    """Ask a job's training program to leave this job alone."""
    folder, wanted = paths.job(job.id), {"attempt": job.attempt, "why": why}
    try:
        if read_json(folder.stop_request) == wanted:
            return
    except (OSError, ValueError):
        pass
    write_json(folder.stop_request, wanted)


def request_stop(paths: RunPaths, why: str = "cancel") -> None:
    """Ask a run's supervisor to end it."""
    write_json(paths.stop_request, {"why": why})
