"""The same jobs through PEFT + accelerate and through ptq: time, memory, losses, and what each part of it is worth.

make bench          everything, about half an hour on two idle cores
make bench-quick    a selection in three minutes, printed only
python -m tests.benchmarks.bench --gpu    0.5B, 1.5B and 7B in bf16 on the first GPU
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch

from tests.benchmarks.bench_ablation import PARTS
from tests.benchmarks.bench_measure import (
    Measured,
    matmul_peak,
    peft_in_turn,
    peft_side_by_side,
    ptq,
    work_of,
)
from tests.benchmarks.bench_world import GPU_BASES, Shape, World
from tests.benchmarks.report import REPOSITORY, RESULTS, conditions

STEPS = {"1M": (40, 20, 8), "22M": (12, 8, 4), "124M": (4, 3, 3)}  #: by tokens a row: 32, 128, 512
TOKENS = (32, 128, 512)
LENGTHS = (20, 100)
FUSED = [
    Shape("1M", 20, 32, 4, 100),
    Shape("1M", 20, 32, 16, 100),
    Shape("1M", 100, 128, 16, 20),
    Shape("22M", 20, 32, 4, 20),
    Shape("22M", 20, 32, 16, 20),
]
ABLATION = [
    ("1M", 20, 32, 1, 30),
    ("1M", 100, 128, 1, 10),
    ("1M", 20, 32, 16, 5),
    ("22M", 100, 32, 1, 5),
    ("22M", 20, 128, 1, 3),
    ("22M", 20, 512, 1, 2),
]
AGREEMENT = 2e-4  #: largest relative difference of a job's last loss


def main() -> int:
    parser = argparse.ArgumentParser(description="The speed benchmark.")
    parser.add_argument("--quick", action="store_true", help="a selection, printed and not written")
    parser.add_argument("--gpu", action="store_true", help="larger bases in bf16 on the first GPU")
    parser.add_argument("--rounds", type=int, default=2, help="pairs of runs of a shape; medians are shown")
    options = parser.parse_args()
    device, threads = ("cuda" if options.gpu else "cpu"), len(os.sched_getaffinity(0))
    alone, fused, ablation = _selection(options.quick, options.gpu)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        one = _Table(world, threads, device, options.rounds)
        first = [one.line(shape) for shape in alone]
        many = [one.line(shape) for shape in fused]
        parts = [_ablation(folder, shape, threads) for shape in ablation]
    page = _page(one, first, many, parts, threads)
    print(f"\n{page}")
    if not options.quick:
        name = "bench-gpu.md" if options.gpu else "bench.md"
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / name).write_text(page, encoding="utf-8")
    return 0 if one.worst <= (AGREEMENT if device == "cpu" else 5e-2) else 1


def _selection(quick: bool, gpu: bool) -> tuple[list[Shape], list[Shape], list[tuple[object, ...]]]:
    if gpu:
        shapes = [Shape(b, n, t, 1, 20, dtype="bf16") for b in GPU_BASES for n in LENGTHS for t in TOKENS]
        return shapes, [Shape(b, 20, 128, k, 20, dtype="bf16") for b in GPU_BASES for k in (4, 16)], []
    if quick:
        return [Shape("1M", 20, 32, 1, 20), Shape("22M", 100, 32, 1, 5)], [Shape("1M", 20, 32, 4, 20)], [ABLATION[0]]
    shapes = [_shape(base, n, tokens) for base in STEPS for n in LENGTHS for tokens in TOKENS]
    return shapes, FUSED, list(ABLATION)


def _shape(base: str, n: int, tokens: int) -> Shape:
    return Shape(base, n, tokens, 1, STEPS[base][TOKENS.index(tokens)], batch=4 if tokens == 512 else 8)


class _Table:
    """Measures shapes, each against PEFT in the same minutes."""

    def __init__(self, world: World, threads: int, device: str, rounds: int) -> None:
        self.world, self.threads, self.device, self.rounds = world, threads, device, rounds
        self.peak: dict[str, float] = {}
        self.worst = 0.0
        self.ratios: list[float] = []  #: of steps, one job
        self.memory: dict[tuple[object, ...], float] = {}

    def line(self, shape: Shape) -> list[str]:
        if shape.dtype not in self.peak:
            self.peak[shape.dtype] = matmul_peak(self.threads, self.device, shape.dtype)
        rounds = self.rounds if shape.jobs == 1 and shape.base != "124M" else 1
        pairs = [(self._run(ptq, shape), self._run(peft_in_turn, shape)) for _ in range(rounds)]
        mine, theirs = (_middle([pair[i] for pair in pairs]) for i in (0, 1))
        beside = self._run(peft_side_by_side, shape) if shape.jobs > 1 else None
        difference = max(abs(a - b) / abs(b) for a, b in zip(mine.losses, theirs.losses, strict=True))
        self.worst = max(self.worst, difference)
        if shape.jobs == 1:
            self.ratios.append(theirs.step / mine.step)
        line = self._cells(shape, mine, theirs, beside, difference)
        print("| " + " | ".join(line) + " |", flush=True)
        return line

    def _cells(
        self, shape: Shape, mine: Measured, theirs: Measured, beside: Measured | None, difference: float
    ) -> list[str]:
        work, peak = work_of(self.world, shape), self.peak[shape.dtype]
        floor = shape.jobs * work.floor / peak
        many = [] if beside is None else [f"{beside.seconds:.1f}", f"{beside.seconds / mine.seconds:.2f}"]
        memory = f"{theirs.megabytes:.0f} / {mine.megabytes:.0f}"
        return [
            shape.base,
            str(shape.length),
            str(shape.tokens),
            *([] if beside is None else [str(shape.jobs)]),
            str(shape.steps),
            f"{1000 * theirs.step:.0f} / {1000 * mine.step:.0f}",
            f"**{theirs.step / mine.step:.2f}**",
            f"{theirs.seconds:.1f} / {mine.seconds:.1f}",
            f"**{theirs.seconds / mine.seconds:.2f}**",
            *many,
            f"{shape.jobs * work.real / mine.step:,.0f}",
            memory if beside is None else f"{memory} / {beside.megabytes:.0f}",
            f"{100 * floor / theirs.step:.0f} / {100 * floor / mine.step:.0f} %",
            f"{work.padded / work.real:.2f} / {work.packed / work.real:.2f}",
            f"{difference:.0e}",
        ]

    def _run(self, program: Callable[[World, Path, Shape, int, str], Measured], shape: Shape) -> Measured:
        folder = self.world.root / "now"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return program(self.world, folder, shape, self.threads, self.device)


def _middle(found: Sequence[Measured]) -> Measured:
    return Measured(
        median(one.seconds for one in found),
        median(one.step for one in found),
        median(one.megabytes for one in found),
        found[0].losses,
    )


def _ablation(folder: str, shape: Sequence[object], threads: int) -> list[str]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_ablation", folder, *map(str, shape), str(threads)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    base, length, tokens, jobs, _ = shape
    without = [f"{found[part] / found['all']:.2f}" for part in PARTS]
    line = [str(x) for x in (base, length, tokens, jobs)] + [f"{1000 * found['all']:.0f}", *without]
    line.append(f"**{found['none'] / found['all']:.2f}**")
    print("| " + " | ".join(line) + " |", flush=True)
    return line


def _page(one: _Table, first: list[list[str]], many: list[list[str]], parts: list[list[str]], threads: int) -> str:
    mean = math.exp(sum(map(math.log, one.ratios)) / len(one.ratios))
    peaks = ", ".join(f"{flops / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, flops in one.peak.items())
    head = ["base", "n", "tokens"]
    pair = ["steps", "ms a step, PEFT / ptq", "ratio", "s with start-up, PEFT / ptq", "ratio"]
    tail = ["tokens/s", "MB, PEFT / ptq", "of the floor, PEFT / ptq", "executed / real tokens, PEFT / ptq", "losses"]
    side = ["s side by side", "ratio to ptq"]
    where = conditions()
    if one.device == "cuda":
        where = where.replace("no GPU", f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    return f"""# Against PEFT

The same prompt-tuning jobs (same random base, rows, order, start, AdamW, linear schedule, clip 1.0) as a user of PEFT
and accelerate trains them, padded by batch, and through ptq's training program. Rows have half to one and a half times
`tokens` tokens, a quarter of them the target; 8 rows a step, 4 at 512 tokens. {threads} threads; matmul peak measured
in this run: {peaks}. `losses`: the largest relative difference of a job's last loss. The floor: the FLOPs that an exact
step needs (prompt once, no padding, logits at labels only), at that peak. Tokens are real ones: neither padding nor
repeated prompts.

## One job
Geometric mean of the ratios of steps: **{mean:.2f}**; the smallest: **{min(one.ratios):.2f}**.

{_table([*head, *pair, *tail], first)}

## Several jobs
PEFT one after another, and side by side as k processes that share the cores. Memory: one PEFT process / one ptq process
with all jobs / all PEFT processes side by side. A step is a step of all jobs.

{_table([*head, "k", *pair, *side, *tail], many)}

## What each part is worth
Time of a step without it, relative to the step with everything; the last column without any. The parts are named in
`tuning/fast.py`.

{_table([*head, "k", "ms, everything", *(f"no {part}" for part in PARTS), "none"], parts)}

{where} Made by `make bench{"" if one.device == "cpu" else " --gpu"}`.
"""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


if __name__ == "__main__":
    sys.exit(main())
