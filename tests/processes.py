"""Train the same job with one process and with several, for the test and the proof of data parallelism and ZeRO."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isolation import Stage
from training_fixtures import MadeRun, make_run

from orchestrator.dispatch.running.launcher import LaunchCommand, free_port, run_environment, training_command
from orchestrator.jobspec import RunSpec
from orchestrator.paths import JobPaths


@dataclass(frozen=True)
class Launched:
    run: MadeRun
    seconds: float


def launch(
    root: Path,
    recipes: Sequence[dict[str, Any]],
    *,
    base: Path,
    dataset: Path,
    processes: int,
    zero: int | None,
    kind: str = "causal",
) -> Launched:
    """`accelerate launch` as a worker's supervisor does it; fails with the output when the run fails."""
    where: dict[str, Any] = {"base": base, "dataset": dataset, "kind": kind}
    run = make_run(root, recipes, processes=processes, zero=zero, port=free_port(), **where)
    spec = RunSpec.read(run.folder.spec)
    command = training_command(spec, run.folder)
    started = time.monotonic()
    done = subprocess.run(command, env={**os.environ, **run_environment(spec)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return Launched(run, time.monotonic() - started)


def launch_scripted(
    root: Path,
    recipes: Sequence[dict[str, Any]],
    script: Sequence[tuple[int, int, Callable[[Stage], object]]],
    *,
    base: Path,
    dataset: Path,
    processes: int,
    zero: int | None,
    first: int = 1,
    attempt: int = 1,
    chosen: Sequence[JobPaths] = (),
    kind: str = "causal",
    command: LaunchCommand = training_command,
) -> Stage:
    """A run of the first jobs; each (job, step, what) of the script is done once that job has reported that step.

    Step 0 is before the program starts. `chosen`: folders of jobs made before, in place of those of `recipes`.
    """
    where: dict[str, Any] = {"base": base, "dataset": dataset, "kind": kind}
    made = make_run(root, recipes, processes=processes, zero=zero, port=free_port(), attempt=attempt, **where)
    stage = Stage(replace(made, jobs=list(chosen) or made.jobs), first=first)
    spec = RunSpec.read(made.folder.spec)
    todo = [entry for entry in script if entry[1] > 0]
    for _, step, what in script:
        if step == 0:
            what(stage)
    with (root / "log").open("w+") as log:
        environment = {**os.environ, **run_environment(spec)}
        program = subprocess.Popen(command(spec, made.folder), env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            while program.poll() is None:
                for entry in [one for one in todo if max(stage.made.losses(one[0]), default=0) >= one[1]]:
                    todo.remove(entry)
                    entry[2](stage)
                time.sleep(0.05)
        finally:
            program.kill()
            program.wait()
        log.seek(0)
        assert not todo, f"the run was over before {todo}: {log.read()}"
        assert program.returncode in {0, 1}, log.read()
    return stage


def largest_difference(one: MadeRun, other: MadeRun, number: int = 0) -> float:
    """The largest relative difference of two loss curves of a job, step by step."""
    expected, found = one.losses(number), other.losses(number)
    assert list(expected) == list(found)
    assert expected
    return max(abs(found[step] - loss) / abs(loss) for step, loss in expected.items())
