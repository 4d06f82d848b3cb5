"""A job that was interrupted ends exactly where an undisturbed one does."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from training_fixtures import MadeRun, make_run, recipe

from orchestrator.manifest import write_manifest
from orchestrator.paths import read_json, write_json
from orchestrator.training.job import TrainedJob
from orchestrator.training.stop import STOPPED_EXIT_CODE

METHODS: list[dict[str, Any]] = [
    {"type": "prompt-tuning", "length": 3},
    {"type": "prefix-tuning", "length": 2, "dropout": 0.4, "reparameterization": {"hidden": 8}},
    {"type": "p-tuning", "length": 4, "reparameterization": {"type": "lstm", "dropout": 0.2}},
]


def interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM arrives while step `step` is applied."""
    set_rates = TrainedJob.set_rates

    def applied(self: TrainedJob) -> None:
        if self.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        set_rates(self)

    monkeypatch.setattr(TrainedJob, "set_rates", applied)


def made(
    root: Path, method: dict[str, Any], bases: dict[str, Path], dataset: Path, attempt: int = 1, **changes: Any
) -> MadeRun:
    one = recipe(method, train__steps=7, **changes)
    return make_run(root, [one], base=bases["gpt2"], dataset=dataset, attempt=attempt)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m["type"])
def test_a_stopped_job_resumes_the_same_trajectory(
    method: dict[str, Any],
    optimizer: str,
    bases: dict[str, Path],
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change = {"train__optimizer": optimizer}
    whole = made(tmp_path / "whole", method, bases, dataset, **change)
    assert whole.train() == 0
    broken = made(tmp_path / "broken", method, bases, dataset, **change)
    with monkeypatch.context() as patch:
        interrupted_at(3, patch)
        assert broken.train() == STOPPED_EXIT_CODE
    assert broken.events(kind="stopped")[0]["step"] == 3
    again = made(tmp_path / "broken", method, bases, dataset, attempt=2, **change)
    assert again.train() == 0
    assert again.events(kind="started")[1]["resumed_from"] == 3
    assert not again.events(kind="warning")
    assert again.losses() == whole.losses()
    assert again.prompt_bytes(attempt=2) == whole.prompt_bytes()


def test_a_job_that_lost_steps_repeats_them(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after kill -9: the newest checkpoint is older than the last reported step, and one line is torn."""
    whole = made(tmp_path / "whole", METHODS[0], bases, dataset)
    assert whole.train() == 0
    broken = made(tmp_path / "broken", METHODS[0], bases, dataset)
    with monkeypatch.context() as patch:
        patch.setattr(TrainedJob, "set_rates", _crash_at(6))
        assert broken.train() == 1
    newest = max(broken.jobs[0].checkpoints.iterdir())
    for file in newest.iterdir():
        file.write_bytes(b"")  # the newest checkpoint was being written when the disk went
    with broken.jobs[0].events.open("a") as file:
        file.write('{"kind": "metric", "step": 99')
    again = made(tmp_path / "broken", METHODS[0], bases, dataset, attempt=2)
    assert again.train() == 0
    assert again.losses() == whole.losses()
    assert again.prompt_bytes(attempt=2) == whole.prompt_bytes()


def _crash_at(step: int) -> Any:
    set_rates = TrainedJob.set_rates

    def applied(self: TrainedJob) -> None:
        if self.step + 1 == step:
            raise RuntimeError("the machine is on fire")
        set_rates(self)

    return applied


def test_steps_of_another_version_are_told(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job goes on, for its own tensors are still its own."""
    with monkeypatch.context() as patch:
        interrupted_at(3, patch)
        broken = made(tmp_path / "broken", METHODS[0], bases, dataset)
        assert broken.train() == STOPPED_EXIT_CODE
    for folder in broken.jobs[0].checkpoints.iterdir():
        state = read_json(folder / "state.json")
        del state["rules"]  # as it was written before
        write_json(folder / "state.json", state)
        write_manifest(folder)
    again = made(tmp_path / "broken", METHODS[0], bases, dataset, attempt=2)
    assert again.train() == 0
    assert again.events(kind="started")[1]["resumed_from"] == 3
    (told,) = again.events(kind="warning")
    assert told["message"].startswith("the first 3 steps were taken by another version of ptq")


def test_a_checkpoint_of_another_recipe_is_not_resumed(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    assert made(tmp_path / "run", METHODS[0], bases, dataset).train() == 0
    other = {"type": "prompt-tuning", "length": 5}
    again = made(tmp_path / "run", other, bases, dataset, attempt=2)
    assert again.train() == 0
    assert again.events(kind="started")[-1]["resumed_from"] == 0
