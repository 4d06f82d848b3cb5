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
    from collections.abc import Callable

    from orchestrator.dispatch.scheduling.slots import Slots
    from orchestrator.registry.storage.engine import Registry

PATIENCE = 10.0  #: seconds without a worker before the command becomes one: a service comes back after 5


def register(app: typer.Typer) -> None:
    @app.command()
    def run(
        recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="recipe file", autocompletion=complete_recipes)],
        overrides: Overrides = None,
        gpus: GpusOption = None,
        cpu_slots: CpuSlotsOption = None,
    ) -> None:
        """Submit a recipe, train it here (or on the worker that is running), and show the result."""
        from orchestrator.cli.common import open_registry
        from orchestrator.cli.output.views import worker_is_here
        from orchestrator.cli.show import print_result
        from orchestrator.cli.waiting import all_succeeded, say_how_it_ended
        from orchestrator.dispatch.access import check_may_work
        from orchestrator.dispatch.submit import enqueue

        registry = open_registry(create=True)
        planned = make_plan(registry, recipe, overrides or [], None)
        slots = None
        if not worker_is_here(registry):
            check_may_work(registry)
            slots = make_slots(gpus, cpu_slots)
            _check_enough(max(job.slots for job in planned.jobs), slots)
        user = registry.settings.user
        done = enqueue(registry, [planned], user=user, after=[], command=sys.argv, now=time.time())[0]
        _work(registry, done.job_ids, slots, lambda: make_slots(gpus, cpu_slots))
        say_how_it_ended(registry, done.job_ids)
        print_result(registry, done.job_ids)
        if not all_succeeded(registry, done.job_ids):
            raise typer.Exit(1)


def _work(registry: Registry, ids: list[int], slots: Slots | None, here: Callable[[], Slots]) -> None:
    """Until the jobs have finished: by the worker that is here, and by one of our own whenever there is none.

    The worker that was here at first may do other jobs alone (another `ptq run`), or leave. `here`: makes our slots.
    """
    from orchestrator.cli.output.views import worker_is_here
    from orchestrator.cli.waiting import POLL, detached, watching
    from orchestrator.dispatch.lock import WorkerPresent

    try:
        with watching(registry, ids) as all_finished:
            seen = time.monotonic()  # a worker
            able = True
            while not all_finished():
                if worker_is_here(registry):
                    seen = time.monotonic()
                if slots is None and able and time.monotonic() - seen >= PATIENCE:
                    slots = _slots_for(registry, ids, here)
                    able = slots is not None
                if slots is None:
                    time.sleep(POLL)
                    continue
                try:
                    _be_the_worker(registry, ids, slots, all_finished)
                    return
                except WorkerPresent:
                    slots, seen = None, time.monotonic()  # one has just started
    except KeyboardInterrupt:
        detached(ids)
        raise


def _slots_for(registry: Registry, ids: list[int], here: Callable[[], Slots]) -> Slots | None:
    """None, and a word on why, where this command cannot do these jobs: they wait for the next worker."""
    from orchestrator.cli.waiting import read
    from orchestrator.dispatch.access import check_may_work
    from orchestrator.errors import PtqError

    try:
        check_may_work(registry)
        slots = here()
        _check_enough(max(job.slots for job in read(registry, ids)), slots)
    except PtqError as error:
        render.note(f"the worker has left, and the next one is waited for: {error}")
        return None
    return slots


def _be_the_worker(registry: Registry, ids: list[int], slots: Slots, all_finished: Callable[[], bool]) -> None:
    from orchestrator.cli.waiting import read
    from orchestrator.dispatch.worker import Worker

    ended = Worker(registry, slots, log=render.note, only=ids).work(until=all_finished)
    if ended.signal is not None and not all(job.result is not None for job in read(registry, ids)):
        raise KeyboardInterrupt


def _check_enough(needed: int, slots: Slots) -> None:
    from orchestrator.errors import BadInput

    if needed > len(slots.names):
        raise BadInput(f"the recipe needs {needed} slots, here are {len(slots.names)}", hint="see --cpu-slots")
