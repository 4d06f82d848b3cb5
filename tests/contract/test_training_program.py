"""What the ledger relies on in a run's program, asked of the real one and of `fake_training.py`, which stands for it in
the tests of the queue: where the two differ, those tests would prove nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from isolation import Stage
from queue_helpers import FAKE_TRAINING, wait_until
from training_fixtures import MadeRun, make_base, make_dataset, make_run, recipe

from orchestrator.jobspec import JobSpec
from orchestrator.manifest import manifest_faults
from orchestrator.training import run

Script = Callable[[Callable[[], None]], None]  #: what happens beside the program; is given what sends it SIGTERM
Program = Callable[[Path, Script], int]  #: plays a run's folder; the exit code

LAST_WORDS = ("artifact", "failed", "stopped")
METHOD = {"type": "prompt-tuning", "length": 3}
LONG = {"train__steps": 1_000_000, "train__checkpoint_every": 100_000, "train__baseline": False}
GOES_ON, LEAVES, NAN, LATE, COMES = range(5)
JOBS = [
    recipe(METHOD, **LONG),
    recipe(METHOD, **LONG),
    recipe(METHOD, **LONG, train__lr=1e30, train__clip=None, description="nan"),  # the fake reads the description
    recipe(METHOD, **LONG, resources={"time_limit": 1.0}),
    recipe(METHOD),
]


def real(folder: Path, script: Script) -> int:
    """In this process, which has loaded torch already."""
    errors: list[BaseException] = []
    over = threading.Event()

    def beside() -> None:
        try:
            script(lambda: None if over.is_set() else os.kill(os.getpid(), signal.SIGTERM))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=beside, daemon=True)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    try:
        code = run.main([str(folder)])
    finally:
        over.set()
        thread.join(60)
        signal.signal(signal.SIGTERM, before)
    assert not errors, errors
    return code


def fake(folder: Path, script: Script) -> int:
    program = subprocess.Popen([sys.executable, str(FAKE_TRAINING), str(folder)], stdout=subprocess.DEVNULL)
    try:
        script(program.terminate)
        return program.wait(60)
    finally:
        program.kill()
        program.wait()


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("where")
    return {"base": make_base(folder / "base", "gpt2"), "dataset": make_dataset(folder / "rows")}


@pytest.mark.parametrize("program", [real, fake])
def test_each_job_comes_and_goes_as_the_ledger_expects(
    program: Program, where: dict[str, Path], tmp_path: Path
) -> None:
    first = Stage(make_run(tmp_path, JOBS, **where), first=COMES)
    code = program(first.made.folder.root, lambda terminate: _first_run(first, terminate))
    assert code == 75
    ends = [_last_word(first.made, number) for number in range(len(JOBS))]
    assert [(end["kind"], end.get("why"), end.get("reason"), end.get("alone")) for end in ends] == [
        ("stopped", "asked", None, None),
        ("stopped", "cancel", None, None),
        ("failed", None, "nan_loss", True),
        ("failed", None, "timeout", True),
        ("artifact", None, None, None),
    ]
    for number in (GOES_ON, LEAVES):  # a job that was stopped loses no step
        assert first.made.jobs[number].checkpoint(ends[number]["step"]).is_dir()
        assert max(first.made.losses(number)) == ends[number]["step"] > 0
    assert list(first.made.jobs[LATE].checkpoints.iterdir())  # `ptq retry` goes on from here
    assert manifest_faults(Path(ends[COMES]["folder"])) == []

    again = _next_run(tmp_path / "second", first, [LEAVES, COMES])
    assert program(again.made.folder.root, lambda _: _second_run(again)) == 0
    end = _last_word(again.made, 0, attempt=2)
    assert (end["kind"], end["why"]) == ("stopped", "preempt")
    assert again.made.events(0, "started")[-1]["resumed_from"] == ends[LEAVES]["step"]
    assert list(again.made.losses(0)) == list(range(1, end["step"] + 1))  # none left out, none twice
    assert _last_word(again.made, 1, attempt=2)["kind"] == "artifact"

    failing = _next_run(tmp_path / "third", first, [NAN])
    assert program(failing.made.folder.root, lambda _: None) == 1
    assert _last_word(failing.made, 0, attempt=2)["reason"] == "nan_loss"


def _first_run(stage: Stage, terminate: Callable[[], None]) -> None:
    for number in range(COMES):
        wait_until(lambda number=number: bool(stage.made.events(number, "started")), what=f"job {number}")  # type: ignore[misc]
    stage.ask(LEAVES, "cancel")
    assert stage.join(COMES)
    for number in (LEAVES, NAN, LATE, COMES):
        wait_until(lambda number=number: bool(_ends(stage.made, number)), what=f"the end of {number}")  # type: ignore[misc]
    terminate()


def _second_run(stage: Stage) -> None:
    """The wish to leave from the first try still lies there, and is nobody's now."""
    before = max(stage.made.losses(0))
    wait_until(lambda: max(stage.made.losses(0)) > before + 3, what="new steps")
    stage.ask(0, "preempt", attempt=2)


def _next_run(root: Path, before: Stage, numbers: list[int]) -> Stage:
    """A run of its own with the second try of some jobs."""
    jobs = [before.made.jobs[number] for number in numbers]
    for job in jobs:
        replace(JobSpec.read(job.spec), attempt=2).write(job.spec)
    made = MadeRun(root, jobs)
    before.spec.write(made.folder.spec)
    return Stage(made, first=len(jobs))


def _ends(made: MadeRun, number: int, attempt: int = 1) -> list[dict[str, Any]]:
    return [event for event in made.events(number) if event["attempt"] == attempt and event["kind"] in LAST_WORDS]


def _last_word(made: MadeRun, number: int, attempt: int = 1) -> dict[str, Any]:
    """It stands last, there is one, and `started` stands before whatever was trained."""
    events = [event for event in made.events(number) if event["attempt"] == attempt]
    kinds = [event["kind"] for event in events if event["kind"] in {*LAST_WORDS, "started", "metric", "progress"}]
    assert kinds[0] == "started"
    assert kinds.count("started") == 1
    assert [event["kind"] for event in events if event["kind"] in LAST_WORDS] == [events[-1]["kind"]]
    return events[-1]
