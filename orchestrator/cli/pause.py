"""`ptq pause` and `ptq resume`: keep the queue, or some of its jobs, from starting anything. What runs goes on."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from orchestrator.cli.complete import complete_jobs
from orchestrator.cli.output import render

Jobs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[JOB]...",
        help="ids, or groups as g12; none, or `queue`: the whole queue",
        autocompletion=complete_jobs,
    ),
]
QUEUE = ["queue"]  #: there is one in a home


def register(app: typer.Typer) -> None:
    app.command("pause")(pause)
    app.command("resume")(resume)


def pause(
    jobs: Jobs = None,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="of the whole queue: everybody sees it")] = "",
) -> None:
    """Start nothing more, or not these jobs, until `ptq resume`. What runs goes on."""
    from orchestrator.cli.common import open_registry
    from orchestrator.dispatch import control

    registry = open_registry()
    user, now = registry.settings.user, time.time()
    if not jobs or jobs == QUEUE:
        control.pause_queue(registry, why, user=user, now=now)
        render.say("the queue is paused; `ptq resume` lets it go on")
        return
    for job, changed in control.pause(registry, jobs, user=user, now=now):
        if changed and job.state == "queued":
            render.say(f"job {job.id} paused")
        elif changed:
            again = f"`ptq resume {job.id}`"
            render.say(f"job {job.id} is {job.state} and goes on; should it stop, only {again} starts it again")
        else:
            render.note(f"job {job.id} {'has finished' if job.result else f'is paused already, by {job.paused_by}'}")


def resume(jobs: Jobs = None) -> None:
    """Let the queue, or these jobs, start again."""
    from orchestrator.cli.common import open_registry
    from orchestrator.dispatch import control

    registry = open_registry()
    user, now = registry.settings.user, time.time()
    if not jobs or jobs == QUEUE:
        was = control.resume_queue(registry)
        render.say("the queue goes on" if was else "the queue was not paused")
        return
    for job, changed in control.resume(registry, jobs, user=user, now=now):
        if changed:
            render.say(f"job {job.id} resumed")
        else:
            render.note(f"job {job.id} {'has finished' if job.result else 'was not paused'}")
