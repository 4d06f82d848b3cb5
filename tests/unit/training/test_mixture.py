"""Mixtures of tasks: rates by the rows, capped or equal, and the same at every try."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from training_fixtures import make_run, recipe

from orchestrator.recipe.schema import Mixture
from orchestrator.training.mixture import MixedTasks

ROWS = [{"task": "a"}] * 60 + [{"task": "b "}] * 30 + [{"task": "c"}] * 10


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({}, {"a": 0.6, "b": 0.3, "c": 0.1}),
        ({"cap": 30}, {"a": 30 / 70, "b": 30 / 70, "c": 10 / 70}),
        ({"sampling": "equal"}, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}),
    ],
)
def test_tasks_come_at_their_rates(options: dict[str, Any], shares: dict[str, float]) -> None:
    mixed = MixedTasks(Mixture.model_validate({"by": "{task}", **options}), ROWS)
    drawn = [number for step in range(500) for number in mixed.rows(step, seed=1, batch_size=8)]
    counted = Counter(ROWS[number]["task"].strip() for number in drawn)
    assert {task: counted[task] / 4000 for task in shares} == pytest.approx(shares, abs=0.03)
    assert len(set(drawn)) == len(ROWS)  # every row of a task comes
    assert mixed.rows(3, seed=1, batch_size=8) == mixed.rows(3, seed=1, batch_size=8)
    assert mixed.rows(3, seed=1, batch_size=8) != mixed.rows(3, seed=2, batch_size=8)


def test_a_job_trains_on_the_mixture(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    method = {"type": "prompt-tuning", "length": 2}
    jobs = [recipe(method), recipe(method, train__mixture={"by": "{label}", "sampling": "equal"})]
    run = make_run(tmp_path, jobs, base=bases["t5"], dataset=dataset, kind="seq2seq")
    assert run.train() == 0
    assert run.losses(0) != run.losses(1)
