"""`ptq status`: slots first, then jobs in the order in which they will start, then those that finished last."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli import render

if TYPE_CHECKING:
    from rich.console import Group

    from orchestrator.cli.views import Queue
    from orchestrator.registry.engine import Registry

WATCH_SECONDS = 1.0


def register(app: typer.Typer) -> None:
    @app.command()
    def status(
        jobs: Annotated[list[str] | None, typer.Argument(metavar="[JOB]...", help="ids, or groups as g12")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="machine-readable, on stdout")] = False,
        watch: Annotated[bool, typer.Option("--watch", help="keep showing it until Ctrl-C")] = False,
        everything: Annotated[bool, typer.Option("--all", help="every job there ever was")] = False,
    ) -> None:
        """Show the GPUs and the jobs."""
        show(jobs or [], as_json=as_json, watch=watch, everything=everything)


def show(
    references: list[str] | None = None, *, as_json: bool = False, watch: bool = False, everything: bool = False
) -> None:
    """What the bare command `ptq` shows too."""
    from orchestrator.cli.views import open_registry
    from orchestrator.errors import BadInput

    if watch and as_json:
        raise BadInput("--watch and --json do not go together")
    registry = open_registry(create=True)
    names = references or []
    if not registry.exists() and not names and not as_json:
        render.say(f"No jobs here yet: {registry.paths.root} holds no registry.")
        render.say("Start with `ptq demo`, or `ptq init` and `ptq submit RECIPE`.")
    elif as_json:
        render.print_json(status_json(_look(registry, names, everything)))
    elif watch:
        _watch(registry, names, everything)
    else:
        _print(_look(registry, names, everything))


def status_json(queue: Queue) -> dict[str, Any]:
    from orchestrator.cli.views import job_json

    return {
        "gpus": queue.slots,
        "jobs": [job_json(job, queue.metrics.get(job.id, {})) for job in queue.jobs],
    }


def _look(registry: Registry, names: list[str], everything: bool) -> Queue:
    """The queue, and what NVML sees on this box: names of cards, and who uses them outside the queue."""
    from orchestrator.cli.views import look
    from orchestrator.dispatch.gpus import NoGpu, Nvml, used_by

    try:
        gpus = Nvml().look()
    except NoGpu:
        gpus = []
    queue = look(registry, names, everything=everything, strangers={gpu.slot: used_by(gpu) for gpu in gpus})
    known = {slot["slot"]: slot for slot in queue.slots}
    for gpu in gpus:
        slot = known.get(gpu.slot)
        if slot is None:
            slot = {"slot": gpu.slot, "state": "no worker", "job": None, "jobs": [], "run": None}
            slot |= {"user": None, "since": None, "detail": ""}
            queue.slots.append(slot)
        slot["name"], slot["memory"], slot["used"] = gpu.name, gpu.memory_bytes, gpu.used_bytes
        if slot["job"] is None and used_by(gpu):
            slot["state"], slot["detail"] = "external", used_by(gpu)
    return queue


def _slot_rows(queue: Queue) -> list[tuple[object, ...]]:
    now = time.time()
    return [
        (
            slot["slot"],
            slot["state"],
            slot["user"],
            render.duration(now - slot["since"]) if slot["since"] else "",
            slot.get("name", ""),
            slot["detail"],
        )
        for slot in queue.slots
    ]


SLOT_COLUMNS = ("slot", "state", "user", "for", "gpu", "what")


def _print(queue: Queue) -> None:
    from orchestrator.cli.views import JOB_COLUMNS, NO_WORKER, job_row

    if queue.slots:
        render.table(SLOT_COLUMNS, _slot_rows(queue))
        render.say()
    if queue.jobs:
        render.table(JOB_COLUMNS, [job_row(job, queue) for job in queue.jobs], right=("id",))
    else:
        render.say("No jobs. Submit one with `ptq submit RECIPE`.")
    if not queue.slots and any(job.result is None for job in queue.jobs):
        render.note(NO_WORKER)


def _watch(registry: Registry, names: list[str], everything: bool) -> None:
    from rich.live import Live

    with Live(_screen(_look(registry, names, everything)), auto_refresh=False) as live:
        while True:
            time.sleep(WATCH_SECONDS)
            live.update(_screen(_look(registry, names, everything)), refresh=True)


def _screen(queue: Queue) -> Group:
    from rich.console import Group

    from orchestrator.cli.views import JOB_COLUMNS, job_row

    slots = render.rich_table(SLOT_COLUMNS, _slot_rows(queue))
    return Group(slots, render.rich_table(JOB_COLUMNS, [job_row(job, queue) for job in queue.jobs], right=("id",)))
