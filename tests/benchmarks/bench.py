"""The same jobs through PEFT + accelerate and through ptq: time, memory, losses, and what each part of it is worth.

make bench          everything, half an hour on two idle cores; goes on where a cut one stopped
make bench-quick    a selection in two minutes, printed only
make bench-gpu      0.5B, 1.5B and 7B in bf16 on the first GPU that CUDA shows
python -m tests.benchmarks.bench --only 'k 16'   the rows whose names hold this, printed only
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from tests.benchmarks.bench_floor import bandwidth, matmul_peak, work_of
from tests.benchmarks.bench_measure import Measured, peft_in_turn, peft_side_by_side, ptq
from tests.benchmarks.bench_page import difference, headline, page, summary, with_figures
from tests.benchmarks.bench_state import State, key_of
from tests.benchmarks.bench_world import GPU_BASES, Shape, World
from tests.benchmarks.report import REPOSITORY, RESULTS

STEPS = {"1M": (40, 20, 8), "22M": (12, 8, 4), "124M": (4, 3, 2)}  #: by tokens a row: 32, 128, 512
TOKENS = (32, 128, 512)
LENGTHS = (20, 100)
FUSED = [
    Shape("1M", 20, 32, 4, 100),
    Shape("1M", 20, 32, 16, 100, in_turn=4),
    Shape("1M", 20, 32, 64, 40, in_turn=4),
    Shape("1M", 100, 128, 16, 20, in_turn=4),
    Shape("22M", 20, 32, 4, 10),
    Shape("22M", 20, 32, 16, 10, in_turn=4),
    Shape("1M", 20, 512, 4, 8, batch=4),
    Shape("22M", 100, 32, 16, 8, in_turn=2),
    Shape("124M", 20, 32, 4, 4, in_turn=2),
]
PREFIXES = [
    Shape("1M", 20, 32, 1, 40, method="prefix-tuning"),
    Shape("22M", 20, 128, 1, 8, method="prefix-tuning"),
    Shape("22M", 20, 32, 16, 10, in_turn=4, method="prefix-tuning"),
]
#: PEFT's prefix of an encoder-decoder stands before its decoder alone, ptq's before its encoder too: other methods.
BOTH_WAYS = [
    Shape("T5 2M", 20, 128, 1, 12),
    Shape("T5 2M", 20, 32, 16, 16, in_turn=2, beside=False),
    Shape("BERT 22M", 20, 32, 1, 12),
    Shape("BERT 22M", 20, 32, 16, 4, in_turn=2, beside=False),
    Shape("BERT 22M", 20, 128, 1, 6, method="prefix-tuning"),
    Shape("BERT 22M", 20, 32, 16, 4, in_turn=2, method="prefix-tuning", beside=False),
]
ABLATION = [
    Shape("1M", 20, 32, 1, 40),
    Shape("1M", 20, 32, 16, 6),
    Shape("1M", 100, 128, 1, 16),
    Shape("22M", 100, 32, 1, 8),
    Shape("T5 2M", 20, 128, 4, 5),
]
QUICK = [Shape("1M", 20, 32, 1, 20), Shape("22M", 100, 32, 1, 5), Shape("1M", 20, 32, 4, 20)]
README = REPOSITORY / "README.md"
EXPLANATION = REPOSITORY / "docs" / "explanation" / "fused-runs.md"
#: On a GPU long enough for several reads of the losses, which stay there for half a second.
GPU_STEPS = 100
GPU_ABLATION = [Shape("0.5B", 20, 128, k, GPU_STEPS, dtype="bf16") for k in (1, 16)]
#: What a process takes of a card beside torch's allocator: CUDA's own context and its libraries.
GPU_CONTEXT = 600 << 20
AGREEMENT = {"cpu": 2e-4, "cuda": 5e-2}  #: largest relative difference of a job's last loss


def main() -> int:
    options = _options()
    device, threads = ("cuda" if options.gpu else "cpu"), len(os.sched_getaffinity(0))
    shapes, ablation = _selection(options.quick, options.gpu)
    if options.only is not None:
        shapes = [shape for shape in shapes if options.only in str(shape)]
        ablation = [shape for shape in ablation if options.only in str(shape)]
    written = not (options.quick or options.only is not None)
    state = State.open(f"{device}-{options.rounds}", keep=written, fresh=options.fresh)
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(World(Path(folder)), state, threads, device, options.rounds, len(shapes) + len(ablation))
        bench.limits(sorted({shape.dtype for shape in shapes}))
        rows = [bench.row(shape) for shape in shapes]
        parts = [bench.parts(shape) for shape in ablation]
    text = page(rows, parts, state.found["limits"], threads=threads, device=device)
    print(f"\n{text}")
    if written:
        _write(text, rows, gpu=options.gpu)
        state.forget()
    return 0 if all(difference(row) <= AGREEMENT[device] for row in rows) else 1


def _write(text: str, rows: Sequence[dict[str, Any]], *, gpu: bool) -> None:
    path = RESULTS / ("bench-gpu.md" if gpu else "bench.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"written to {path.relative_to(REPOSITORY)}")
    if not gpu:
        explanation = EXPLANATION.read_text(encoding="utf-8")
        EXPLANATION.write_text(with_figures(explanation, summary(rows)), encoding="utf-8")
        README.write_text(with_figures(README.read_text(encoding="utf-8"), headline(text)), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The speed benchmark.")
    parser.add_argument("--quick", action="store_true", help="a selection, printed and not written")
    parser.add_argument("--only", help="rows whose names hold this text, printed and not written")
    parser.add_argument("--gpu", action="store_true", help="larger bases in bf16 on the first GPU")
    parser.add_argument("--rounds", type=int, default=1, help="pairs of runs of one job; medians are shown")
    parser.add_argument("--fresh", action="store_true", help="do not go on where a run that was cut has stopped")
    return parser.parse_args()


def _selection(quick: bool, gpu: bool) -> tuple[list[Shape], list[Shape]]:
    """(rows against PEFT, rows of the ablation)"""
    if gpu:
        alone = [Shape(b, n, t, 1, GPU_STEPS, dtype="bf16") for b in GPU_BASES for n in LENGTHS for t in TOKENS]
        many = [Shape(b, 20, 128, k, GPU_STEPS, dtype="bf16", in_turn=4) for b in GPU_BASES for k in (4, 16, 64)]
        return alone + many, GPU_ABLATION
    if quick:
        return QUICK, [replace(ABLATION[0], steps=20)]
    alone = [_alone(base, n, tokens) for base in STEPS for n in LENGTHS for tokens in TOKENS]
    return alone + FUSED + PREFIXES + BOTH_WAYS, ABLATION


def _alone(base: str, n: int, tokens: int) -> Shape:
    return Shape(base, n, tokens, 1, STEPS[base][TOKENS.index(tokens)], batch=4 if tokens == 512 else 8)


class _Bench:
    """Measures shapes, each against PEFT in the same minutes; what is known already is taken from the state."""

    def __init__(self, world: World, state: State, threads: int, device: str, rounds: int, count: int) -> None:
        self.world, self.state, self.threads, self.device, self.rounds = world, state, threads, device, rounds
        self._count, self._begun, self._at = count, time.monotonic(), 0

    def limits(self, dtypes: Sequence[str]) -> None:
        """What the machine can do at best."""
        known = self.state.found.setdefault("limits", {"flops": {}, "bandwidth": None})
        for dtype in dtypes:
            if dtype not in known["flops"]:
                known["flops"][dtype] = matmul_peak(self.threads, self.device, dtype)
        known["bandwidth"] = known["bandwidth"] or bandwidth(self.threads, self.device)
        self.state.save()

    def row(self, shape: Shape) -> dict[str, Any]:
        return self._known("row", shape, self._measured)

    def parts(self, shape: Shape) -> dict[str, Any]:
        return self._known("parts", shape, self._ablation)

    def _known(self, kind: str, shape: Shape, measure: Callable[[Shape], dict[str, Any]]) -> dict[str, Any]:
        self._at += 1
        name = f"{kind}: {key_of(shape)}"
        if name not in self.state.found:
            self.state.found[name] = {"shape": asdict(shape), **measure(shape)}
            self.state.save()
        found: dict[str, Any] = self.state.found[name]
        return found

    def _measured(self, shape: Shape) -> dict[str, Any]:
        pairs = []
        for _ in range(self.rounds if shape.jobs == 1 else 1):
            mine = self._run(ptq, shape, "ptq")
            theirs = self._run(peft_in_turn, shape, "PEFT", tell=lambda what: self._tell(shape, what))
            pairs.append((mine, theirs))
        mine, theirs = (_middle([pair[i] for pair in pairs]) for i in (0, 1))
        beside = None
        each = theirs.bytes + (GPU_CONTEXT if self.device == "cuda" else 0)
        if shape.jobs > 1 and shape.beside and shape.jobs * each < 0.9 * self._memory():
            beside = asdict(self._run(peft_side_by_side, shape, "PEFT side by side"))
        self._tell(shape, f"{theirs.step / mine.step:.2f} by step, {theirs.seconds / mine.seconds:.2f} with start-up")
        work = asdict(work_of(self.world, shape))
        return {"ptq": asdict(mine), "peft": asdict(theirs), "beside": beside, "work": work}

    def _memory(self) -> float:
        if self.device == "cuda":
            return float(torch.cuda.mem_get_info()[0])
        return float(psutil.virtual_memory().available)

    def _run(self, program: Callable[..., Measured], shape: Shape, name: str, **more: Any) -> Measured:
        if not more:
            self._tell(shape, name)
        folder = self.world.root / "now"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return program(self.world, folder, shape, self.threads, self.device, **more)

    def _ablation(self, shape: Shape) -> dict[str, Any]:
        self._tell(shape, "what each part is worth")
        numbers = [str(self.world.root), json.dumps(asdict(shape)), self.device, str(self.threads)]
        command = [sys.executable, "-m", "tests.benchmarks.bench_ablation", *numbers]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        environment.pop("OMP_NUM_THREADS", None)
        done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        return {"seconds": json.loads(done.stdout.splitlines()[-1])}

    def _tell(self, shape: Shape, what: str) -> None:
        minutes = (time.monotonic() - self._begun) / 60
        print(f"[{self._at} of {self._count}, {minutes:.1f} min] {shape}: {what}", flush=True)


def _middle(found: Sequence[Measured]) -> Measured:
    return Measured(
        median(one.seconds for one in found),
        median(one.step for one in found),
        median(one.bytes for one in found),
        found[0].losses,
    )


if __name__ == "__main__":
    sys.exit(main())
