"""Each part of the fast path turned off alone, on alone, and all of them: one process, the training program itself, in
turns.

    python -m tests.benchmarks.bench_ablation FOLDER SHAPE DEVICE THREADS

Prints one JSON line: {variant: seconds a step}.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
import sys
from pathlib import Path
from statistics import median

from orchestrator.training import run
from orchestrator.tuning.fast import Fast
from orchestrator.tuning.host import BaseHost
from tests.benchmarks.bench_measure import step_seconds
from tests.benchmarks.bench_page import NEEDED, only, parts_of
from tests.benchmarks.bench_world import Shape, World

ROUNDS = 2


def main(root: str, told: str, device: str, threads: str) -> None:
    world, shape = World(Path(root)), Shape(**json.loads(told))
    off = dict.fromkeys((field.name for field in dataclasses.fields(Fast)), False)
    parts = parts_of(device, shape.base)
    variants = {"all": Fast(), **{part: Fast(**{part: False}) for part in parts}, "none": Fast(**off)}
    if shape.jobs == 1 and shape.tokens == 32:
        variants |= {only(part): Fast(**off | dict.fromkeys([part, *NEEDED.get(part, ())], True)) for part in parts}
    found: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(ROUNDS):
        for name, fast in variants.items():
            BaseHost.fast = fast
            folder = Path(root) / f"ablation-{turn}-{name}"
            made = world.ptq_run(folder, shape, threads=int(threads), device=device)
            with contextlib.redirect_stdout(io.StringIO()):
                if run.main([str(made.root)]):
                    sys.exit(f"the run of variant {name} failed")
            found[name] += step_seconds(folder, device)
            shutil.rmtree(folder)
    print(json.dumps({name: median(seconds) for name, seconds in found.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
