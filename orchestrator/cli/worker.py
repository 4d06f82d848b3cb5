"""`ptq worker`: place jobs on this box's GPUs or CPU slots, and look after their runs."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import render

if TYPE_CHECKING:
    from orchestrator.dispatch.slots import Slots
    from orchestrator.dispatch.worker import Ended

KEEP_WARM = 30.0  #: seconds: enough to look at a result and submit the next job

CpuSlotsOption = Annotated[int | None, typer.Option("--cpu-slots", metavar="N", help="train on the CPU, N slots")]
GpusOption = Annotated[str | None, typer.Option("--gpus", metavar="0,1", help="only these GPUs; default: all")]


def register(app: typer.Typer) -> None:
    @app.command()
    def worker(
        gpus: GpusOption = None,
        cpu_slots: CpuSlotsOption = None,
        until_idle: Annotated[bool, typer.Option("--until-idle", help="leave when nothing is left to do")] = False,
        keep_warm: Annotated[
            str | None,
            typer.Option(
                "--keep-warm",
                metavar="TIME",
                help="how long a base stays loaded for the next job when its last one has left (30s, 10m); "
                "it gives way at once to a job that needs its slots; default: 30s, with --until-idle 0",
            ),
        ] = None,
        fuse_jobs: Annotated[
            int, typer.Option("--fuse-jobs", metavar="N", min=1, help="at most N jobs share a run")
        ] = 16,
    ) -> None:
        """Run jobs on this box until Ctrl-C (runs then go on by themselves; the next worker takes them over)."""
        from orchestrator.cli.views import open_registry
        from orchestrator.dispatch.fusing import default_limits
        from orchestrator.dispatch.worker import Worker

        warm = _seconds(keep_warm) if keep_warm is not None else 0.0 if until_idle else KEEP_WARM
        slots = make_slots(gpus, cpu_slots)
        limits = replace(default_limits(slots.device), jobs=fuse_jobs)
        registry = open_registry(create=True)
        render.note(f"worker: {', '.join(slots.names)} in {registry.paths.root}; Ctrl-C leaves, runs go on")
        worker = Worker(registry, slots, log=render.note, limits=limits, keep_warm=warm)
        tell_end(worker.work(until_idle=until_idle))


def _seconds(text: str) -> float:
    """`30s`, `10m` or a number of seconds."""
    from orchestrator.errors import BadInput
    from orchestrator.recipe.schema import duration

    try:
        seconds = float(str(duration(text if not text.replace(".", "", 1).isdigit() else float(text))))
    except ValueError as error:
        raise BadInput(f"{text!r}: {error}", where="--keep-warm") from None
    return seconds


def make_slots(gpus: str | None, cpu_slots: int | None) -> Slots:
    from orchestrator.dispatch.slots import CpuSlots, GpuSlots
    from orchestrator.errors import BadInput

    if gpus is not None and cpu_slots is not None:
        raise BadInput("give --gpus or --cpu-slots, not both")
    if cpu_slots is not None:
        return CpuSlots(cpu_slots)
    if gpus is None:
        return GpuSlots()
    try:
        indices = [int(part) for part in gpus.split(",")]
    except ValueError:
        raise BadInput(f"not a list of GPU numbers: {gpus!r}", where="--gpus", hint="write for example 0,1") from None
    return GpuSlots(indices)


def tell_end(ended: Ended) -> None:
    if ended.running:
        count = len(ended.running)
        runs = "1 run goes" if count == 1 else f"{count} runs go"
        render.note(f"worker: left; {runs} on by itself, and the next `ptq worker` takes over")
    for job, reason in ended.never.items():
        render.note(f"job {job} is still queued: {reason}")
    if ended.signal == signal.SIGINT:
        raise typer.Exit(130)
    if ended.never:
        raise typer.Exit(4)
