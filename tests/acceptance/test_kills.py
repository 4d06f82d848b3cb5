"""kill -9 of the worker, of the supervisor and of a training process: the job ends as if nothing had happened."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from box import Box

STEPS = 1000
TASK = {"type": "generate", "input": "the {text}", "target": "{target}", "max_new_tokens": 4}
TRAIN = {"steps": STEPS, "batch_size": 4, "lr": 0.01, "checkpoint_every": 100, "eval_batch_size": 8}
METHOD = {"type": "prompt-tuning", "length": 3}
VICTIMS = ("orchestrator.cli.main", "orchestrator.dispatch.running.supervisor", "orchestrator.training.run")


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    home = tmp_path_factory.mktemp("kills") / "home"
    home.mkdir()
    made = Box.made(home)
    yield made
    made.close()


def series(home: Path, job: int) -> list[tuple[int, float]]:
    with sqlite3.connect(home / "registry.db") as connection:
        wanted = "SELECT step, value FROM metrics WHERE job_id = ? AND split = 'train' AND name = 'loss' ORDER BY step"
        return connection.execute(wanted, (job,)).fetchall()


def test_every_kill_ends_in_the_same_artifact(box: Box) -> None:
    recipe = box.recipe("kills", task=TASK, train=TRAIN, method=METHOD, resources={"fuse": "never"})
    for job, victim in enumerate(VICTIMS, start=1):
        box.ok("submit", recipe)
        worker = box.start("worker", "--cpu-slots", "2")
        box.until_step(job, 250)
        box.kill(victim)
        if victim != VICTIMS[0]:
            # This worker sees the loss and starts the job again by itself; it too must not be needed for long.
            box.until_step(job, 300)
            worker.kill()
        worker.wait()
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


def test_one_killed_rank_of_two_ends_in_the_same_artifact(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    box = Box.made(tmp_path / "home")
    try:
        resources = {"gpus": 2, "fuse": "never"}
        recipe = box.recipe("ranks", task=TASK, train=TRAIN, method=METHOD, resources=resources)
        killed, undisturbed = 1, 2
        box.ok("submit", recipe)
        worker = box.start("worker", "--cpu-slots", "2", "--until-idle")
        box.until_step(killed, 250)
        box.kill("orchestrator.training.run", most=1)
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
    finally:
        box.close()
