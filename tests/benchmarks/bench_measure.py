"""What the speed benchmark measures with: programs and their memory, the machine's matmul peak, the floor of a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from orchestrator.events import read_events
from orchestrator.paths import JobPaths, RunPaths
from orchestrator.tuning.packing import Line
from orchestrator.tuning.rows import Row, RowBatch
from tests.benchmarks.bench_world import BASES, GPU_BASES, Shape, World
from tests.benchmarks.report import REPOSITORY


@dataclass(frozen=True)
class Measured:
    """The jobs of one shape, trained by one program or by several."""

    seconds: float  #: with start-up
    step: float  #: seconds of one step of all jobs, the first one left out
    megabytes: float  #: peak resident memory, of all processes at once
    losses: list[float]  #: each job's last


def peft_in_turn(world: World, folder: Path, shape: Shape, threads: int, device: str) -> Measured:
    done = [_peft(world, folder, shape, [job], threads, device) for job in range(shape.jobs)]
    return Measured(
        seconds=sum(one.seconds for one in done),
        step=sum(one.step for one in done),
        megabytes=max(one.megabytes for one in done),
        losses=[loss for one in done for loss in one.losses],
    )


def peft_side_by_side(world: World, folder: Path, shape: Shape, threads: int, device: str) -> Measured:
    """As many processes as jobs; they share the cores."""
    return _peft(world, folder, shape, list(range(shape.jobs)), max(1, threads // shape.jobs), device)


def ptq(world: World, folder: Path, shape: Shape, threads: int, device: str) -> Measured:
    """The training program as a worker's supervisor starts it, with all jobs in one run."""
    run = world.ptq_run(folder, shape, threads=threads, device=device)
    started = time.time()
    (finished,) = _run([[sys.executable, "-m", "orchestrator.training.run", str(run.root)]], folder)
    reports = [_reports(folder, job) for job in range(shape.jobs)]
    step = max(_each_step([event["at"] for event in one]) for one in reports)
    losses = [float(one[-1]["values"]["loss"]) for one in reports]
    return Measured(finished[0] - started, step, finished[1], losses)


def step_seconds(run: RunPaths, folder: Path) -> list[float]:
    """How long each step of the first job took."""
    at = [event["at"] for event in _reports(folder, 0)]
    return [b - a for a, b in pairwise(at)]


def matmul_peak(threads: int, device: str, dtype: str) -> float:
    """FLOP/s of the best matrix product among several shapes, measured here."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    torch.set_num_threads(threads)
    best = 0.0
    for rows, inner, columns in ((512, 128, 512), (2048, 768, 3072), (4096, 1024, 1024)):
        size = 8 if device == "cuda" else 1
        a = torch.randn(rows * size, inner * size, dtype=kind, device=device)
        b = torch.randn(inner * size, columns * size, dtype=kind, device=device)
        for _ in range(8):
            _wait(device)
            started = time.perf_counter()
            a @ b
            _wait(device)
            flops = 2 * a.shape[0] * a.shape[1] * b.shape[1]
            best = max(best, flops / (time.perf_counter() - started))
    return best


@dataclass(frozen=True)
class Work:
    """What one job's steps hold on average."""

    real: float  #: tokens with the prompt once and nothing behind the last label
    packed: float  #: tokens that ptq runs through the layers
    padded: float  #: tokens that PEFT does
    floor: float  #: FLOPs that an exact step cannot do without


def work_of(world: World, shape: Shape) -> Work:
    """Counted from the rows of the first job's steps, with the code that lays them out."""
    lines = (world.rows(shape.base, shape.tokens) / "train.jsonl").read_text(encoding="utf-8").splitlines()
    lengths = [(len(row["text"].split()) + 1, len(row["target"].split()) + 1) for row in map(json.loads, lines)]
    spec = json.loads(world.peft_spec(world.root, shape, 0, threads=1, device="cpu").read_text(encoding="utf-8"))
    found = [_counted([lengths[i] for i in numbers], shape) for numbers in spec["order"]]
    return Work(*(sum(column) / len(found) for column in zip(*found, strict=True)))


def _counted(lengths: Sequence[tuple[int, int]], shape: Shape) -> tuple[float, float, float, float]:
    n = shape.length
    front = [-j - 1 for j in range(n)]
    # Words differ between rows, so that nothing but the prompt is shared.
    rows = [Row([*front, *[10 + i] * (a + b)], [-100] * (n + a) + [10 + i] * b, 0) for i, (a, b) in enumerate(lengths)]
    line = Line.of(RowBatch.collate(rows, pad_id=0).trimmed(), [0], causal=True, share=True)
    tokens = [a + b - 1 for a, b in lengths]
    real = n + sum(tokens)
    padded = len(rows) * (n + max(a + b for a, b in lengths))
    pairs = n * (n + 1) / 2 + sum(s * n + s * (s + 1) / 2 for s in tokens)
    vocabulary, width, layers, linear, attended = _sizes(shape.base)
    floor = 4 * linear * real + 12 * attended * layers * pairs + 4 * vocabulary * width * sum(b for _, b in lengths)
    return real, len(line.ids), padded, floor


def _sizes(base: str) -> tuple[int, int, int, int, int]:
    """V, H, L, numbers in the layers' matrices, width of the queries."""
    if base in BASES:
        vocabulary, width, layers, _ = BASES[base]
        return vocabulary, width, layers, 12 * width * width * layers, width
    vocabulary, width, layers, heads, key_heads, inner = GPU_BASES[base]
    attention = 2 * width * width + 2 * width * width * key_heads // heads
    return vocabulary, width, layers, layers * (attention + 3 * width * inner), width


def _peft(world: World, folder: Path, shape: Shape, jobs: list[int], threads: int, device: str) -> Measured:
    specs = [world.peft_spec(folder, shape, job, threads=threads, device=device) for job in jobs]
    started = time.time()
    finished = _run([[sys.executable, "-m", "tests.benchmarks.bench_peft", str(spec)] for spec in specs], folder)
    told = [json.loads(text.splitlines()[-1]) for _, _, text in finished]
    return Measured(
        seconds=max(end for end, _, _ in finished) - started,
        step=max(_each_step(one["at"]) for one in told),
        megabytes=sum(peak for _, peak, _ in finished),
        losses=[one["losses"][-1] for one in told],
    )


def _run(commands: Sequence[Sequence[str]], folder: Path) -> list[tuple[float, float, str]]:
    """(end, peak megabytes, output) of programs that run at the same time."""
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
        pid, status, usage = os.wait4(-1, 0)
        ends[pid] = (time.time(), usage.ru_maxrss / 1024, status)
    found = []
    for process, output, errors in started:
        end, peak, status = ends[process.pid]
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{process.args}\n{errors.read_text()}")
        found.append((end, peak, output.read_text()))
    return found


def _reports(folder: Path, job: int) -> list[dict[str, Any]]:
    found, _ = read_events(JobPaths(folder / "jobs" / str(job + 1)).events)
    return [event for event in found if event["kind"] == "metric" and event["split"] == "train"]


def _each_step(at: Sequence[float]) -> float:
    """The median, so that one hiccup of the machine does not count."""
    return median(b - a for a, b in pairwise(at))


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
