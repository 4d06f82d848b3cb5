"""Waiting for jobs with a progress bar. Ctrl-C stops the waiting, never the job."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from orchestrator.cli.output import render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from orchestrator.registry.jobs import Job
    from orchestrator.registry.storage.engine import Registry

POLL = 0.3


def wait_for(registry: Registry, ids: Sequence[int]) -> bool:
    """Wait until all have finished; whether all succeeded."""
    with watching(registry, ids) as all_finished:
        while not all_finished():
            time.sleep(POLL)
    return all_succeeded(registry, ids)


@contextmanager
def watching(registry: Registry, ids: Sequence[int]) -> Iterator[Callable[[], bool]]:
    """A bar; each call of what this yields moves it, and says whether all jobs have finished."""
    from orchestrator.dispatch.scheduling.reasons import id_ranges

    title = f"job {id_ranges(ids)}" if len(ids) == 1 else f"jobs {id_ranges(ids)}"
    with render.progress(title) as advance:

        def all_finished() -> bool:
            found = read(registry, ids)
            finished = sum(job.result is not None for job in found)
            first = next((job for job in found if job.result is None), found[0])
            if len(found) == 1:
                advance(first.step, first.steps, _words(first))
            else:
                advance(finished, len(found), f"job {first.id} {_words(first)}")
            return finished == len(found)

        yield all_finished


def read(registry: Registry, ids: Sequence[int]) -> list[Job]:
    from orchestrator.registry import jobs

    with registry.read() as conn:
        return jobs.list_jobs(conn, ids=ids)


def all_succeeded(registry: Registry, ids: Sequence[int]) -> bool:
    from orchestrator.states import JobResult

    return all(job.result is JobResult.SUCCEEDED for job in read(registry, ids))


def say_how_it_ended(registry: Registry, ids: Sequence[int]) -> None:
    """A line on stderr for every job that did not succeed."""
    for job in read(registry, ids):
        if job.result is not None and job.result != "succeeded":
            render.note(f"job {job.id} {job.result} ({job.reason}): {job.message}")
            render.note(f"  `ptq logs {job.id}` shows its log, `ptq events {job.id}` what happened")


def detached(ids: Sequence[int]) -> None:
    from orchestrator.dispatch.scheduling.reasons import id_ranges

    one = len(ids) == 1
    render.note(
        f"{'job' if one else 'jobs'} {id_ranges(ids)} {'goes' if one else 'go'} on; "
        f"`ptq status` shows {'it' if one else 'them'}, `ptq cancel {ids[0]}` ends {'it' if one else 'one'}"
    )


def _words(job: Job) -> str:
    return str(job.result or job.state)
