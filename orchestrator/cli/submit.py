"""`ptq submit`: check recipes, resolve their base and dataset, queue their jobs."""

from __future__ import annotations

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.common import Json, Recipes
from orchestrator.cli.complete import complete_jobs
from orchestrator.cli.output import render

if TYPE_CHECKING:
    from orchestrator.dispatch.submit import Enqueued, Planned
    from orchestrator.registry.storage.engine import Registry


class Priority(StrEnum):
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="over the recipe's value")]


def register(app: typer.Typer) -> None:
    @app.command()
    def submit(
        recipes: Recipes,
        overrides: Overrides = None,
        priority: Annotated[Priority | None, typer.Option(help="over the recipe's own")] = None,
        after: Annotated[
            list[str] | None,
            typer.Option(metavar="JOB", help="start when this has succeeded", autocompletion=complete_jobs),
        ] = None,
        after_any: Annotated[
            list[str] | None,
            typer.Option(metavar="JOB", help="start when this has ended, however", autocompletion=complete_jobs),
        ] = None,
        at_once: Annotated[
            int | None, typer.Option("--at-once", metavar="N", min=1, help="at most N jobs of each recipe at a time")
        ] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="show the jobs and write nothing")] = False,
        wait: Annotated[
            bool, typer.Option("--wait", help="until the jobs have finished; exit 1 if one failed")
        ] = False,
        as_json: Json = False,
    ) -> None:
        """Queue the jobs of one or more recipes."""
        from orchestrator.cli.common import open_registry
        from orchestrator.dispatch.submit import enqueue

        registry = open_registry(create=True)
        planned = [make_plan(registry, path, overrides or [], priority) for path in recipes]
        if dry_run:
            _show_plan(planned, as_json)
            return
        done = enqueue(
            registry, planned, user=registry.settings.user, after=after or [], command=sys.argv, now=time.time(),
            after_any=after_any or [], at_once=at_once,
        )  # fmt: skip
        ids = [job_id for one in done for job_id in one.job_ids]
        _tell(done, recipes, as_json)
        _hints(registry)
        if wait:
            _wait(registry, ids)


def make_plan(registry: object, path: Path, overrides: list[str], priority: str | None) -> Planned:
    from orchestrator.dispatch.submit import plan
    from orchestrator.recipe.load import load_recipe

    return plan(registry, load_recipe(path, overrides), priority=priority)  # type: ignore[arg-type]


def _tell(done: list[Enqueued], recipes: list[Path], as_json: bool) -> None:
    from orchestrator.cli.output.views import group_name
    from orchestrator.dispatch.scheduling.reasons import id_ranges

    if as_json:
        parts = zip(recipes, done, strict=True)
        made = [{"recipe": str(path), "group": group_name(one.group_id), "jobs": one.job_ids} for path, one in parts]
        render.print_json({"jobs": [job for one in done for job in one.job_ids], "submitted": made})
        return
    for one in done:
        if one.group_id is None:
            render.say(f"job {one.job_ids[0]}")
        else:
            render.say(f"group {group_name(one.group_id)}: jobs {id_ranges(one.job_ids)}")


def _hints(registry: Registry) -> None:
    from orchestrator.cli.output.views import NO_WORKER, worker_is_here

    if not worker_is_here(registry):
        render.note(NO_WORKER)


def _show_plan(planned: list[Planned], as_json: bool) -> None:
    rows = [
        {
            "name": job.name, "method": job.method, "base": job.base["id"], "dataset": job.recipe["dataset"],
            "seed": job.seed, "slots": job.slots, "priority": job.priority,
        }
        for one in planned
        for job in one.jobs
    ]  # fmt: skip
    if as_json:
        render.print_json({"jobs": rows})
    else:
        render.table(list(rows[0]), [list(row.values()) for row in rows], right=("seed", "slots", "priority"))
        render.note("dry run: nothing was written")


def _wait(registry: object, ids: list[int]) -> None:
    from orchestrator.cli.waiting import detached, say_how_it_ended, wait_for

    try:
        succeeded = wait_for(registry, ids)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        detached(ids)
        raise
    say_how_it_ended(registry, ids)  # type: ignore[arg-type]
    if not succeeded:
        raise typer.Exit(1)
