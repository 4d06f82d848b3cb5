"""`ptq status`: slots first, then jobs in the order in which they will start, then those that finished last."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.common import AnyJobs, Json
from orchestrator.cli.output import render

if TYPE_CHECKING:
    from rich.console import Group

    from orchestrator.cli.output.views import Queue
    from orchestrator.registry.storage.engine import Registry

WATCH_SECONDS = 1.0
#: A terminal shows no more, and a queue of 100,000 must not cost more than one of 100; `--all` and `--json` show all.
QUEUED_SHOWN = 50


def register(app: typer.Typer) -> None:
    @app.command()
    def status(
        jobs: AnyJobs = None,
        as_json: Json = False,
        watch: Annotated[bool, typer.Option("--watch", help="keep showing it until Ctrl-C")] = False,
        everything: Annotated[bool, typer.Option("--all", help="every job there ever was")] = False,
    ) -> None:
        """Show the GPUs and the jobs."""
        show(jobs or [], as_json=as_json, watch=watch, everything=everything)


def show(
    references: list[str] | None = None, *, as_json: bool = False, watch: bool = False, everything: bool = False
) -> None:
    """What the bare command `ptq` shows too."""
    from orchestrator.cli.common import open_registry
    from orchestrator.errors import BadInput

    if watch and as_json:
        raise BadInput("--watch and --json do not go together")
    registry = open_registry(create=True)
    names = references or []
    if not registry.exists() and not names and not as_json:
        render.say(f"No jobs here yet: {registry.paths.root} holds no registry.")
        render.say("Start with `ptq demo`, or `ptq init` and `ptq submit RECIPE`.")
    elif as_json:
        render.print_json(status_json(queue_now(registry, names, everything, waiting=None)))
    elif watch:
        _watch(registry, names, everything)
    else:
        _print(queue_now(registry, names, everything))


def status_json(queue: Queue) -> dict[str, Any]:
    from orchestrator.cli.output.views import job_json, waits

    return {
        "gpus": queue.slots,
        "jobs": [
            {
                **job_json(job, queue.metrics.get(job.id, {})),
                "waits": waits(job, queue),
                "ends_at": queue.ends.get(job.id),
            }
            for job in queue.jobs
        ],
        "reservations": [{**vars(one), "waits": queue.reasons.get(-one.id)} for one in queue.reservations],
        "users": queue.shares,
        "paused": queue.paused or None,
    }


def queue_now(registry: Registry, names: list[str], everything: bool, waiting: int | None = QUEUED_SHOWN) -> Queue:
    """The queue, and what NVML sees on this box: names of cards, and who uses them outside the queue."""
    from orchestrator.cli.output.views import look
    from orchestrator.dispatch.scheduling.gpus import NoGpu, gpu_source
    from orchestrator.dispatch.scheduling.slots import slot_of

    try:
        gpus = gpu_source(registry.settings).look()
    except NoGpu:
        gpus = []
    seen = {gpu.slot: slot_of(gpu.slot, gpu, held=False) for gpu in gpus}
    queue = look(registry, names, everything=everything, waiting=waiting, slots=seen)
    known = {slot["slot"]: slot for slot in queue.slots}
    for gpu in gpus:
        slot = known.get(gpu.slot)
        if slot is None:
            slot = {"slot": gpu.slot, "state": "no worker", "job": None, "jobs": [], "run": None}
            slot |= {"user": None, "since": None, "detail": ""}
            queue.slots.append(slot)
        slot |= {"name": gpu.name, "memory": gpu.memory_bytes, "used": gpu.used_bytes}
        slot |= {"utilisation": gpu.utilisation, "index": gpu.index}
        if slot["run"] is None and seen[gpu.slot].taken_by:
            slot["state"], slot["detail"] = "external", seen[gpu.slot].taken_by
        elif slot["run"] is None and seen[gpu.slot].fault:
            slot["state"], slot["detail"] = "quarantined", seen[gpu.slot].fault
    return queue


def _slot_rows(queue: Queue) -> list[tuple[object, ...]]:
    return [
        (
            _label(slot),
            slot["state"],
            slot["user"],
            render.duration(queue.now - slot["since"]) if slot["since"] else "",
            _memory(slot),
            "" if slot.get("utilisation") is None else f"{slot['utilisation']}%",
            slot.get("name", ""),
            slot["detail"],
        )
        for slot in queue.slots
    ]


def _label(slot: dict[str, Any]) -> str:
    """`gpu 3` where the card's number is known: a UUID says nothing to a reader; --json holds it."""
    return f"gpu {slot['index']}" if "index" in slot else str(slot["slot"])


def _memory(slot: dict[str, Any]) -> str:
    return f"{slot['used'] / 2**30:.0f}/{slot['memory'] / 2**30:.0f} GiB" if "memory" in slot else ""


SLOT_COLUMNS = ("slot", "state", "user", "for", "memory", "busy", "gpu", "what")
SHARE_COLUMNS = ("user", "used", "part", "holds", "waiting", "quota")


def _tables(queue: Queue) -> list[tuple[tuple[str, ...], list[tuple[object, ...]], tuple[str, ...]]]:
    """(columns, rows, columns of numbers): slots first, then jobs as they start, then what each user has taken."""
    from orchestrator.cli.output.views import JOB_COLUMNS

    shares = _share_rows(queue) if len(queue.shares) > 1 else []
    tables = [
        (SLOT_COLUMNS, _slot_rows(queue), ("memory", "busy")),
        (JOB_COLUMNS, _job_rows(queue), ("id",)),
        (SHARE_COLUMNS, shares, ("used", "part", "holds", "waiting", "quota")),
    ]
    if not render.is_narrow():
        return tables
    return [(*_without(columns, rows), right) for columns, rows, right in tables]


def _job_rows(queue: Queue) -> list[tuple[object, ...]]:
    """Jobs, and among those that wait the reservations that wait, as they stand in line."""
    from orchestrator.cli.output.views import job_row, reservation_row
    from orchestrator.states import JobState

    place = {number: at for at, number in enumerate(queue.order)}
    waiting = [
        (place.get(job.id, len(place)), job_row(job, queue)) for job in queue.jobs if job.state is JobState.QUEUED
    ]
    people = (one for one in queue.reservations if one.started_at is None)
    waiting += [(place.get(-one.id, len(place)), reservation_row(one, queue)) for one in people]
    going = [job_row(job, queue) for job in queue.jobs if job.result is None and job.state is not JobState.QUEUED]
    ended = [job_row(job, queue) for job in queue.jobs if job.result is not None]
    return [*going, *(row for _, row in sorted(waiting, key=lambda one: one[0])), *ended]


#: What a narrow terminal has no room for: there the words of the last column matter more.
DISPENSABLE = frozenset({"gpu", "group", "metric"})


def _without(
    columns: tuple[str, ...], rows: list[tuple[object, ...]]
) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    kept = [place for place, name in enumerate(columns) if name not in DISPENSABLE]
    return tuple(columns[place] for place in kept), [tuple(row[place] for place in kept) for row in rows]


def _share_rows(queue: Queue) -> list[tuple[object, ...]]:
    return [
        (
            one["user"], f"{one['hours']:.1f} h", f"{100 * one['part']:.0f}%", f"{one['holds']:.3g}",
            str(one["waiting"]) if one["waiting"] else "", one["quota"],
        )
        for one in queue.shares
    ]  # fmt: skip


def _notes(queue: Queue) -> list[str]:
    from orchestrator.cli.output.views import NO_WORKER

    found = [f"nothing starts: {queue.paused}"] if queue.paused else []
    if queue.fault:
        found.append(f"not followed: {queue.fault}")
    if queue.more:
        found.append(f"{queue.more:,} more jobs are queued; `ptq status --all` shows every job")
    if not queue.watched and any(job.result is None for job in queue.jobs):
        found.append(NO_WORKER)
    return found


def _print(queue: Queue) -> None:
    shown = 0
    for columns, rows, right in _tables(queue):
        if not rows:
            continue
        if shown:
            render.say()
        render.table(columns, rows, right=right)
        shown += 1
    if not queue.jobs:
        render.say("No jobs. Submit one with `ptq submit RECIPE`.")
    for note in _notes(queue):
        render.note(note)


def _watch(registry: Registry, names: list[str], everything: bool) -> None:
    from rich.live import Live

    with Live(_screen(queue_now(registry, names, everything)), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(WATCH_SECONDS)
            live.update(_screen(queue_now(registry, names, everything)), refresh=True)


def _screen(queue: Queue) -> Group:
    """As large as the terminal: what does not fit is cut off at the bottom, and the order puts the least there."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [Text(f"ptq status, {time.strftime('%H:%M:%S')} (Ctrl-C leaves)", style="dim"), Text()]
    slots, jobs, shares = _tables(queue)
    for columns, rows, right in (slots, shares, jobs):
        if rows:
            parts += [render.rich_table(*render.used(columns, rows), right=right), Text()]
    return Group(*parts, *(Text(note, style="yellow") for note in _notes(queue)))
