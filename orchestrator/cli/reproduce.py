"""`ptq reproduce`: the same job again, and whether the same came of it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.common import Json
from orchestrator.cli.output import render

if TYPE_CHECKING:
    from orchestrator.dispatch.reproduce import Agreement
    from orchestrator.registry.storage.engine import Registry


def register(app: typer.Typer) -> None:
    @app.command("reproduce")
    def reproduce(
        job: Annotated[str, typer.Argument(metavar="JOB", help="its id")],
        wait: Annotated[bool, typer.Option("--wait", help="until it has finished, then say whether it agrees")] = False,
        check: Annotated[
            bool, typer.Option("--check", help="queue nothing; say whether the newest reproduction agrees")
        ] = False,
        json: Json = False,
    ) -> None:
        """Submit exactly that job again: recipe, seed, rows and weights. Exit code 1 when another prompt comes out."""
        from orchestrator.cli.common import open_registry
        from orchestrator.cli.output.views import one_job
        from orchestrator.dispatch.reproduce import agreement, newest_repeat, repeat_job

        registry = open_registry()
        original = one_job(registry, job).id
        if check:
            _tell(agreement(registry, original, newest_repeat(registry, original)), json)
            return
        user = registry.settings.user
        repeat = repeat_job(registry, original, user=user, command=sys.argv, now=time.time())
        if not wait:
            if json:
                render.print_json({"reproduces": original, "job": repeat})
            else:
                render.say(f"job {repeat}")
                render.note(f"`ptq reproduce {original} --check` compares them when it has finished")
            return
        _wait(registry, repeat)
        _tell(agreement(registry, original, repeat), json)


def _wait(registry: Registry, repeat: int) -> None:
    from orchestrator.cli.output.views import NO_WORKER, worker_is_here
    from orchestrator.cli.waiting import detached, say_how_it_ended, wait_for

    if not worker_is_here(registry):
        render.note(NO_WORKER)
    try:
        wait_for(registry, [repeat])
    except KeyboardInterrupt:
        detached([repeat])
        raise
    say_how_it_ended(registry, [repeat])


def _tell(found: Agreement, json: bool) -> None:
    if json:
        render.print_json(_json(found))
    else:
        jobs = f"job {found.repeat} reproduces job {found.original}"
        render.say(f"{jobs}: {'the same prompt, bit for bit' if found.same else 'another prompt'}")
        _tables(found)
    if not found.same:
        raise typer.Exit(1)


def _tables(found: Agreement) -> None:
    if found.metrics and not found.same:
        rows = [(split, name, render.number(then), render.number(now)) for split, name, then, now in found.metrics]
        render.table(["split", "metric", "then", "now"], rows, right=("then", "now"))
    if found.differences:
        render.table(["what differs", "then", "now"], [(one.what, one.then, one.now) for one in found.differences])
    elif not found.same:
        render.note("versions, code and hardware are the same: something in this job is not deterministic")


def _json(found: Agreement) -> dict[str, Any]:
    return {
        "original": found.original,
        "repeat": found.repeat,
        "same": found.same,
        "metrics": [dict(zip(("split", "metric", "then", "now"), row, strict=True)) for row in found.metrics],
        "differences": [vars(one) for one in found.differences],
    }
