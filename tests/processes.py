"""Train the same job with one process and with several, for the test and the proof of data parallelism and ZeRO."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training_fixtures import MadeRun, make_run

from orchestrator.dispatch.launcher import free_port, run_environment, training_command
from orchestrator.jobspec import RunSpec


@dataclass(frozen=True)
class Launched:
    run: MadeRun
    seconds: float


def launch(
    root: Path, recipe: dict[str, Any], *, base: Path, dataset: Path, processes: int, zero: int | None
) -> Launched:
    """`accelerate launch` as a worker's supervisor does it; fails with the output when the run fails."""
    run = make_run(root, [recipe], base=base, dataset=dataset, processes=processes, zero=zero, port=free_port())
    spec = RunSpec.read(run.folder.spec)
    command = training_command(spec, run.folder)
    started = time.monotonic()
    done = subprocess.run(command, env={**os.environ, **run_environment(spec)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return Launched(run, time.monotonic() - started)


def largest_difference(one: MadeRun, other: MadeRun) -> float:
    """The largest relative difference of two loss curves, step by step."""
    expected, found = one.losses(), other.losses()
    assert list(expected) == list(found)
    assert expected
    return max(abs(found[step] - loss) / abs(loss) for step, loss in expected.items())
