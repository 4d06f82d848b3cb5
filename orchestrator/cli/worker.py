"""`ptq worker`: place jobs on this box's GPUs or CPU slots, and look after their runs."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import render

if TYPE_CHECKING:
    from orchestrator.dispatch.scheduling.slots import Slots
    from orchestrator.dispatch.worker import Ended

KEEP_WARM = 30.0  #: seconds: enough to look at a result and submit the next job

CpuSlotsOption = Annotated[int | None, typer.Option("--cpu-slots", metavar="N", help="train on the CPU, N slots")]
GpusOption = Annotated[str | None, typer.Option("--gpus", metavar="0,1", help="only these GPUs; default: all")]


KeepWarmOption = Annotated[
    str | None,
    typer.Option(
        "--keep-warm",
        metavar="TIME",
        help="how long a base stays loaded for the next job when its last one has left (30s, 10m); "
        "it gives way at once to a job that needs its slots; default: 30s, with --until-idle 0",
    ),
]
FuseJobsOption = Annotated[int, typer.Option("--fuse-jobs", metavar="N", min=1, help="at most N jobs share a run")]
FuseSlowdownOption = Annotated[
    float,
    typer.Option(
        "--fuse-slowdown",
        metavar="X",
        min=1.0,
        help="a shared step takes at most X times as long as any of its jobs' own",
    ),
]
FuseTurnsOption = Annotated[
    bool,
    typer.Option(
        "--fuse-turns",
        help="jobs that share a run take turns within a step, each in forwards of its own: bit for bit as alone",
    ),
]
DrainOption = Annotated[
    bool, typer.Option("--drain", help="ask the worker that is here to start nothing more and leave; runs end first")
]
ServiceOption = Annotated[
    bool, typer.Option("--install-service", help="print a systemd unit for this home, and how to install it")
]


def register(app: typer.Typer) -> None:
    @app.command()
    def worker(
        gpus: GpusOption = None,
        cpu_slots: CpuSlotsOption = None,
        until_idle: Annotated[bool, typer.Option("--until-idle", help="leave when nothing is left to do")] = False,
        keep_warm: KeepWarmOption = None,
        fuse_jobs: FuseJobsOption = 16,
        fuse_slowdown: FuseSlowdownOption = 8.0,
        fuse_turns: FuseTurnsOption = False,
        drain: DrainOption = False,
        install_service: ServiceOption = False,
    ) -> None:
        """Run jobs on this box until Ctrl-C (runs then go on by themselves; the next worker takes them over)."""
        if drain:
            _drain()
            return
        if install_service:
            _print_service(gpus, cpu_slots)
            return
        from orchestrator.cli.common import open_registry
        from orchestrator.dispatch.scheduling.admission import default_limits
        from orchestrator.dispatch.worker import Worker

        warm = _seconds(keep_warm) if keep_warm is not None else 0.0 if until_idle else KEEP_WARM
        slots = make_slots(gpus, cpu_slots)
        limits = replace(default_limits(slots.device), jobs=fuse_jobs, slowdown=fuse_slowdown)
        registry = open_registry(create=True)
        render.note(f"worker: {', '.join(slots.names)} in {registry.paths.root}; Ctrl-C leaves, runs go on")
        worker = Worker(registry, slots, log=render.note, limits=limits, keep_warm=warm, turns=fuse_turns)
        tell_end(worker.work(until_idle=until_idle))


def _drain() -> None:
    from orchestrator.cli.common import open_registry
    from orchestrator.dispatch.lock import holder
    from orchestrator.errors import NotFound
    from orchestrator.registry import workers

    registry = open_registry()
    pid = holder(registry.paths.worker_lock)
    if pid is None:
        raise NotFound("no worker is at work in this home", hint="`ptq worker` starts one")
    with registry.write() as conn:
        asked = workers.drain(conn, registry.box, by=registry.settings.user)
    if not asked:
        hint = f"stop it with `kill {pid}`: its runs go on, and the next worker takes them over"
        raise NotFound("the worker here is not entered in the registry, and was not asked", hint=hint)
    render.say("the worker starts nothing more and leaves when its runs have ended; `ptq status` shows them")


def _print_service(gpus: str | None, cpu_slots: int | None) -> None:
    from orchestrator.cli.service import how_to_install, unit
    from orchestrator.settings import load_settings

    settings = load_settings()
    options = [f"--gpus {gpus}"] if gpus is not None else [f"--cpu-slots {cpu_slots}"] if cpu_slots is not None else []
    render.say(unit(settings.home, settings.user, options))
    render.note(how_to_install(settings.user))


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
    from orchestrator.dispatch.scheduling.gpus import gpu_source
    from orchestrator.dispatch.scheduling.slots import CpuSlots, GpuSlots
    from orchestrator.errors import BadInput
    from orchestrator.settings import load_settings

    if gpus is not None and cpu_slots is not None:
        raise BadInput("give --gpus or --cpu-slots, not both")
    if cpu_slots is not None:
        return CpuSlots(cpu_slots)
    if gpus is None:
        return GpuSlots(source=gpu_source(load_settings()))
    try:
        indices = [int(part) for part in gpus.split(",")]
    except ValueError:
        raise BadInput(f"not a list of GPU numbers: {gpus!r}", where="--gpus", hint="write for example 0,1") from None
    return GpuSlots(indices, gpu_source(load_settings()))


def tell_end(ended: Ended) -> None:
    if ended.running:
        count = len(ended.running)
        runs = "1 run goes" if count == 1 else f"{count} runs go"
        render.note(f"worker: left; {runs} on by itself, and the next `ptq worker` takes over")
    if ended.drained_by:
        render.note(f"worker: left, drained by {ended.drained_by}")
    for job, reason in ended.never.items():
        render.note(f"{'job' if job > 0 else 'reservation'} {job if job > 0 else f'r{-job}'} is still queued: {reason}")
    if ended.signal == signal.SIGINT:
        raise typer.Exit(130)
    if ended.never:
        raise typer.Exit(4)
