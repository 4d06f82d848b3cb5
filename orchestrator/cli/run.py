"""`ptq run`: submit a recipe, work here until it is done, show the result."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.complete import complete_recipes
from orchestrator.cli.output import render
from orchestrator.cli.submit import Overrides, make_plan
from orchestrator.cli.worker import CpuSlotsOption, GpusOption, make_slots

if TYPE_CHECKING:
    from orchestrator.dispatch.scheduling.slots import Slots
    from orchestrator.registry.storage.engine import Registry


def register(app: typer.Typer) -> None:
    @app.command()
    def run(
        recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="recipe file", autocompletion=complete_recipes)],
        overrides: Overrides = None,
        gpus: GpusOption = None,
        cpu_slots: CpuSlotsOption = None,
    ) -> None:
        """Submit a recipe, train it here (or on the worker that is running), and show the result."""
        from orchestrator.cli.output.views import open_registry, worker_is_here
        from orchestrator.cli.show import print_result
        from orchestrator.cli.waiting import all_succeeded, say_how_it_ended
        from orchestrator.dispatch.access import check_may_work
        from orchestrator.dispatch.submit import enqueue
        from orchestrator.errors import BadInput

        registry = open_registry(create=True)
        planned = make_plan(registry, recipe, overrides or [], None)
        slots = None
        if not worker_is_here(registry):
            check_may_work(registry)
            slots = make_slots(gpus, cpu_slots)
        needed = max(job.slots for job in planned.jobs)
        if slots is not None and needed > len(slots.names):
            raise BadInput(f"the recipe needs {needed} slots, here are {len(slots.names)}", hint="see --cpu-slots")
        user = registry.settings.user
        done = enqueue(registry, [planned], user=user, after=[], command=sys.argv, now=time.time())[0]
        _work(registry, done.job_ids, slots)
        say_how_it_ended(registry, done.job_ids)
        print_result(registry, done.job_ids)
        if not all_succeeded(registry, done.job_ids):
            raise typer.Exit(1)


def _work(registry: Registry, ids: list[int], slots: Slots | None) -> None:
    """Until the jobs have finished: by a worker of our own, or by the one that is here."""
    from orchestrator.cli.waiting import detached, wait_for, watching
    from orchestrator.dispatch.lock import WorkerPresent
    from orchestrator.dispatch.worker import Worker

    try:
        if slots is not None:
            try:
                with watching(registry, ids) as all_finished:
                    ended = Worker(registry, slots, log=render.note, only=ids).work(until=all_finished)
            except WorkerPresent:
                slots = None  # one has just started
            else:
                if ended.signal is not None and not _finished(registry, ids):
                    raise KeyboardInterrupt
        if slots is None:
            wait_for(registry, ids)
    except KeyboardInterrupt:
        detached(ids)
        raise


def _finished(registry: Registry, ids: list[int]) -> bool:
    from orchestrator.cli.waiting import read

    return all(job.result is not None for job in read(registry, ids))
