"""What the speed benchmark measures: the same jobs as programs of either kind, their times, memory and losses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from orchestrator.events import read_events
from orchestrator.paths import JobPaths
from tests.benchmarks.bench_world import Shape, World
from tests.benchmarks.report import REPOSITORY

_ONE_READ = 1e-3  #: seconds: losses that are reported closer together were read from a GPU at once


@dataclass(frozen=True)
class Measured:
    """Jobs of one shape, trained by one program or by several."""

    seconds: float  #: with start-up
    step: float  #: seconds of one step of all jobs, the first one left out
    bytes: float  #: peak memory, of all processes that run at once
    losses: list[float]  #: each job's last


def peft_in_turn(
    world: World, folder: Path, shape: Shape, threads: int, device: str, tell: Callable[[str], None]
) -> Measured:
    """`shape.in_turn` jobs are run; the others would take as long, for they have as many rows and steps."""
    done = []
    for job in range(shape.in_turn or shape.jobs):
        tell(f"PEFT, job {job + 1} of {shape.in_turn or shape.jobs}")
        done.append(_peft(world, folder, shape, [job], threads, device))
    times = shape.jobs / len(done)
    return Measured(
        seconds=times * sum(one.seconds for one in done),
        step=times * sum(one.step for one in done),
        bytes=max(one.bytes for one in done),
        losses=[loss for one in done for loss in one.losses],
    )


def peft_side_by_side(world: World, folder: Path, shape: Shape, threads: int, device: str) -> Measured:
    """As many processes as jobs; they share the cores."""
    return _peft(world, folder, shape, list(range(shape.jobs)), max(1, threads // shape.jobs), device)


def ptq(world: World, folder: Path, shape: Shape, threads: int, device: str) -> Measured:
    """The training program as a worker's supervisor starts it, with all jobs in one run."""
    run = world.ptq_run(folder, shape, threads=threads, device=device)
    started = time.time()
    ((end, text),) = _run([[sys.executable, "-m", "tests.benchmarks.bench_ptq", str(run.root)]], folder)
    reports = [_reports(folder, job) for job in range(shape.jobs)]
    each = _between_reads if device == "cuda" else _each_step
    return Measured(
        seconds=end - started,
        step=max(each([event["at"] for event in one]) for one in reports),
        bytes=json.loads(text.splitlines()[-1])["bytes"],
        losses=[float(one[-1]["values"]["loss"]) for one in reports],
    )


def step_seconds(folder: Path, device: str) -> list[float]:
    """How long each step of the first job took; on a GPU, where losses are read now and then, one on average."""
    at = [event["at"] for event in _reports(folder, 0)]
    return [_between_reads(at)] if device == "cuda" else [b - a for a, b in pairwise(at)]


def _peft(world: World, folder: Path, shape: Shape, jobs: list[int], threads: int, device: str) -> Measured:
    specs = [world.peft_spec(folder, shape, job, threads=threads, device=device) for job in jobs]
    started = time.time()
    finished = _run([[sys.executable, "-m", "tests.benchmarks.bench_peft", str(spec)] for spec in specs], folder)
    told = [json.loads(text.splitlines()[-1]) for _, text in finished]
    return Measured(
        seconds=max(end for end, _ in finished) - started,
        step=max(_each_step(one["at"]) for one in told),
        bytes=sum(one["bytes"] for one in told),
        losses=[one["losses"][-1] for one in told],
    )


def _run(commands: Sequence[Sequence[str]], folder: Path) -> list[tuple[float, str]]:
    """(end, output) of programs that run at the same time."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    environment.pop("OMP_NUM_THREADS", None)  # each program sets its own threads
    started = []
    for number, command in enumerate(commands):
        output, errors = folder / f"out-{number}", folder / f"err-{number}"
        with output.open("w") as out, errors.open("w") as err:
            process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=REPOSITORY)
        started.append((process, output, errors))
    ends = {}
    for _ in started:
        pid, status = os.waitpid(-1, 0)
        ends[pid] = (time.time(), os.waitstatus_to_exitcode(status))
    found = []
    for process, output, errors in started:
        end, process.returncode = ends[process.pid]
        if process.returncode:
            sys.exit(f"{process.args}\n{errors.read_text()}")
        found.append((end, output.read_text()))
    return found


def _reports(folder: Path, job: int) -> list[dict[str, Any]]:
    found, _ = read_events(JobPaths(folder / "jobs" / str(job + 1)).events)
    return [event for event in found if event["kind"] == "metric" and event["split"] == "train"]


def _each_step(at: Sequence[float]) -> float:
    """The median, so that one hiccup of the machine does not count."""
    return median(b - a for a, b in pairwise(at))


def _between_reads(at: Sequence[float]) -> float:
    """Where losses stay on the GPU for a while: from the first time that some were read to the last."""
    first = next((i for i in range(1, len(at)) if at[i] - at[i - 1] > _ONE_READ), len(at)) - 1
    if first == len(at) - 1:
        raise ValueError(f"all {len(at)} steps were read at once: too few to be timed")
    return (at[-1] - at[first]) / (len(at) - 1 - first)
