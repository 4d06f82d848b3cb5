"""Rows made while a backward runs: the same rows, and nothing beside the step at any other time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_fixtures import MadeRun, make_run, recipe

from orchestrator.errors import BadData
from orchestrator.training import step as steps
from orchestrator.training.job import TrainedJob
from orchestrator.tuning.fast import Fast
from orchestrator.tuning.host import BaseHost

PREFIX = {"type": "prefix-tuning", "length": 2}
PROMPT = {"type": "prompt-tuning", "length": 3}


@pytest.fixture
def trained(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> Callable[..., MadeRun]:
    def train(*recipes: dict[str, Any]) -> MadeRun:
        made = make_run(
            tmp_path / str(len(list(tmp_path.iterdir()))), list(recipes), base=bases["gpt2"], dataset=dataset
        )
        made.train()
        return made

    return train


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """(step, whether beside a backward) of every batch that is read."""
    found: list[tuple[int, bool]] = []
    before = TrainedJob.batch_of

    def batch_of(job: TrainedJob, step: int) -> Any:
        found.append((step, threading.current_thread() is not threading.main_thread()))
        return before(job, step)

    monkeypatch.setattr(TrainedJob, "batch_of", batch_of)
    return found


def test_every_step_but_the_first_finds_its_rows_made(
    trained: Callable[..., MadeRun], read: list[tuple[int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    laid: list[int] = []
    lay = steps._lay
    monkeypatch.setattr(steps, "_lay", lambda *a: laid.append(threading.get_ident()) or lay(*a))
    made = trained(recipe(PREFIX), recipe(PROMPT, train__steps=4, train__seeds=[4]))
    assert sorted(read) == [(0, False)] * 2 + [(s, True) for s in (1, 1, 2, 2, 3, 3, 4, 5)]
    assert laid.count(threading.get_ident()) == 1  # the first step's
    monkeypatch.setattr(BaseHost, "fast", Fast(ahead=False))
    read.clear()
    plain = trained(recipe(PREFIX), recipe(PROMPT, train__steps=4, train__seeds=[4]))
    assert not any(beside for _, beside in read)
    for job in (0, 1):
        assert made.losses(job) == plain.losses(job)
        assert made.prompt_bytes(job) == plain.prompt_bytes(job)


def test_what_goes_wrong_ahead_ends_its_job_at_its_own_step(
    trained: Callable[..., MadeRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = TrainedJob.batch_of

    def batch_of(job: TrainedJob, step: int) -> Any:
        if job.recipe.seed == 4 and step == 3:
            raise BadData("a row without words")
        return before(job, step)

    monkeypatch.setattr(TrainedJob, "batch_of", batch_of)
    made = trained(recipe(PROMPT), recipe(PROMPT, train__seeds=[4]))
    assert list(made.losses(1)) == [1, 2, 3]
    assert "a row without words" in made.events(1, "failed")[0]["message"]
    monkeypatch.undo()
    assert made.losses(0) == pytest.approx(trained(recipe(PROMPT)).losses(), rel=1e-6)


def test_no_thread_is_left(trained: Callable[..., MadeRun]) -> None:
    before = threading.active_count()
    trained(recipe(PROMPT))
    assert threading.active_count() == before
