"""`ptq logs`: what a job's current or last run has printed. Reads the file; needs no worker."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.common import OneJob
from orchestrator.cli.output import render

if TYPE_CHECKING:
    from orchestrator.paths import RunPaths
    from orchestrator.registry.jobs import Job
    from orchestrator.registry.storage.engine import Registry

POLL = 0.3
_CHUNK = 1 << 20


def register(app: typer.Typer) -> None:
    @app.command()
    def logs(
        job: OneJob,
        follow: Annotated[bool, typer.Option("-f", "--follow", help="until the job ends, over all its tries")] = False,
        lines: Annotated[int | None, typer.Option("--lines", metavar="N", min=0, help="only the last N lines")] = None,
    ) -> None:
        """Show a job's log."""
        from orchestrator.cli.common import open_registry
        from orchestrator.cli.output.views import one_job

        registry = open_registry()
        found = one_job(registry, job)
        _say_whose_log(registry, found)
        if follow:
            _follow(registry, found.id, lines)
        elif found.run_id is None:
            render.note(f"job {found.id} has not started yet")
        else:
            run = registry.paths.run(found.run_id)
            if run.old_log.exists():
                render.note(f"earlier lines of this long log: {run.old_log}")
            _copy(run, 0, lines)


def _say_whose_log(registry: Registry, job: Job) -> None:
    """A run of several jobs has one log."""
    if job.run_id is None:
        return
    from orchestrator.dispatch.scheduling.reasons import id_ranges
    from orchestrator.jobspec import jobs_seen

    others = [other for other in jobs_seen(registry.paths.run(job.run_id)) if other != job.id]
    if others:
        what = f"job {others[0]}" if len(others) == 1 else f"jobs {id_ranges(others)}"
        render.note(f"the log of run {job.run_id}, which job {job.id} shared with {what}")


def _follow(registry: Registry, job_id: int, lines: int | None) -> None:
    from orchestrator.registry import jobs

    run_id, offset = None, 0
    while True:
        with registry.read() as conn:
            job = jobs.get_job(conn, job_id)
        if job.run_id is not None:
            if run_id not in {None, job.run_id}:  # the rest of the last try, before the next one
                _copy(registry.paths.run(run_id), offset, None)
                render.note(f"job {job_id}: attempt {job.attempt}")
                offset, lines = 0, None
            elif run_id == job.run_id:
                lines = None
            run_id = job.run_id
            offset = _copy(registry.paths.run(run_id), offset, lines)
        if job.result is not None:
            return
        time.sleep(POLL)


def _copy(run: RunPaths, offset: int, lines: int | None) -> int:
    """Write the log from `offset` on (its last lines only) to stdout; where it ended."""
    with suppress(FileNotFoundError):
        if run.log.stat().st_size < offset:  # moved away, for it had grown too long
            _write(run.old_log, offset, None)
            offset = 0
    return _write(run.log, offset, lines)


def _write(path: Path, offset: int, lines: int | None) -> int:
    try:
        with path.open("rb") as file:
            file.seek(offset if lines is None else _last_lines(path, lines))
            while chunk := file.read(_CHUNK):
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            return file.tell()
    except FileNotFoundError:
        return offset


def _last_lines(path: Path, lines: int) -> int:
    """The offset at which the last `lines` lines begin; reads the file backwards."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        position, needed = end, lines
        while position > 0:
            size = min(_CHUNK, position)
            file.seek(position - size)
            chunk = file.read(size)
            at = len(chunk) - (1 if position == end and chunk.endswith(b"\n") else 0)
            if needed == 0:
                return end
            while (at := chunk.rfind(b"\n", 0, at)) >= 0:
                needed -= 1
                if needed == 0:
                    return position - size + at + 1
            position -= size
        return 0
