"""kill -9 of the worker, of the supervisor and of a training process: the job ends as if nothing had happened."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from box import Box, armed_box, until

STEPS = 120
TASK = {"type": "generate", "input": "the {text}", "target": "{target}", "max_new_tokens": 4}
TRAIN = {"steps": STEPS, "batch_size": 4, "lr": 0.01, "checkpoint_every": 40, "eval_batch_size": 8}
MIDWAY = ("training.checkpointed", "training.stepped")  #: a step behind a checkpoint: what comes again is compared too
METHOD = {"type": "prompt-tuning", "length": 3}
VICTIMS = ("orchestrator.cli.main", "orchestrator.dispatch.running.supervisor", "orchestrator.training.run")


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    yield from armed_box(tmp_path, monkeypatch)


def series(home: Path, job: int) -> list[tuple[int, float]]:
    with closing(sqlite3.connect(home / "registry.db")) as connection:
        wanted = "SELECT step, value FROM metrics WHERE job_id = ? AND split = 'train' AND name = 'loss' ORDER BY step"
        return connection.execute(wanted, (job,)).fetchall()


def test_every_kill_ends_in_the_same_artifact(box: Box) -> None:
    recipe = box.recipe("kills", task=TASK, train=TRAIN, method=METHOD, resources={"fuse": "never"})
    for victim in VICTIMS:
        box.ok("submit", recipe)
        worker = box.start("worker", "--cpu-slots", "2")
        halted = box.halted(*MIDWAY)
        box.kill(victim)
        if victim != VICTIMS[0]:
            # This worker sees the loss and starts the job again by itself; it too must not be needed for long.
            until(lambda pid=halted: pid not in {p.pid for p in box.processes()}, "the end of the try")  # type: ignore[misc]
            box.halted(MIDWAY[0])
            worker.kill()
        worker.wait()
        box.go_on()
        box.work(slots=2)  # another worker takes over what goes on
    box.ok("submit", recipe)
    box.work(slots=2)
    undisturbed = 1 + len(VICTIMS)
    expected = series(box.home, undisturbed)
    assert [step for step, _ in expected] == list(range(1, STEPS + 1))
    prompt = (box.artifact(undisturbed) / "prompt.safetensors").read_bytes()
    for job, victim in enumerate(VICTIMS, start=1):
        state = box.job(job)
        assert (state["state"], state["result"]) == ("finished", "succeeded"), victim
        assert state["attempt"] == (1 if victim == VICTIMS[0] else 2), victim
        assert series(box.home, job) == expected, victim
        assert (box.artifact(job) / "prompt.safetensors").read_bytes() == prompt, victim
    assert not box.processes()


def test_one_killed_rank_of_two_ends_in_the_same_artifact(box: Box) -> None:
    resources = {"gpus": 2, "fuse": "never"}
    recipe = box.recipe("ranks", task=TASK, train=TRAIN, method=METHOD, resources=resources)
    killed, undisturbed = 1, 2
    box.ok("submit", recipe)
    worker = box.start("worker", "--cpu-slots", "2", "--until-idle")
    box.halted(*MIDWAY)
    box.kill(VICTIMS[2], most=1)
    box.go_on()
    assert worker.wait(timeout=250) == 0
    box.ok("submit", recipe)
    box.work(slots=2)
    assert [(box.job(job)["result"], box.job(job)["attempt"]) for job in (killed, undisturbed)] == [
        ("succeeded", 2),
        ("succeeded", 1),
    ]
    expected = series(box.home, undisturbed)
    assert [step for step, _ in expected] == list(range(1, STEPS + 1))
    assert series(box.home, killed) == expected
    prompts = [(box.artifact(job) / "prompt.safetensors").read_bytes() for job in (killed, undisturbed)]
    assert prompts[0] == prompts[1]
    assert not box.processes()
