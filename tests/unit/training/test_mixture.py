"""Mixtures of tasks: rates by the rows, capped or equal, and the same at every try."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from training_fixtures import THINGS, make_run, recipe

from orchestrator.recipe.schema import Mixture
from orchestrator.training.mixture import MixedTasks, first_of_each, task_names
from orchestrator.training.predict import Predictor
from orchestrator.training.rows import Rows

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


def test_the_first_rows_are_of_all_tasks_though_a_split_is_sorted_by_them() -> None:
    tasks = "aaaaaabbcccc"
    assert first_of_each(tasks, 8) == [0, 1, 2, 6, 7, 8, 9, 10]
    assert first_of_each(tasks, 100) == list(range(12))


def test_tasks_with_names_alike_are_told_apart() -> None:
    long = "answer the question about the passage: is it"
    found = task_names(["rte", "a b", "a-b", "?", "!", f"{long} so", f"{long} not so"])
    assert len(set(found.values())) == len(found)
    assert found["rte"] == "rte"
    assert found["a b"].startswith("a-b-")
    assert all(len(name) <= 40 and "".join(name.split("-")).replace("_", "").isalnum() for name in found.values())


def test_a_job_trains_on_the_mixture(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    method = {"type": "prompt-tuning", "length": 2}
    jobs = [recipe(method), recipe(method, train__mixture={"by": "{label}", "sampling": "equal"})]
    run = make_run(tmp_path, jobs, base=bases["t5"], dataset=dataset, kind="seq2seq")
    assert run.train() == 0
    assert run.losses(0) != run.losses(1)


def test_every_task_has_its_score_beside_their_mean(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    """Alone and together with another job, while training and at the end; counted again from the predictions."""
    task = {"type": "classify", "input": "{text}", "labels": {thing: [thing] for thing in THINGS}, "label": "{target}"}
    mixture = {"by": "a {label} thing"}
    one = recipe(
        {"type": "prompt-tuning", "length": 2}, task=task, train__eval_every=3, train__mixture=mixture, train__lr=0.3
    )
    alone = make_run(tmp_path / "a", [one], base=bases["gpt2"], dataset=dataset)
    both = make_run(tmp_path / "b", [one, one | {"name": "other"}], base=bases["gpt2"], dataset=dataset)
    assert [alone.train(), both.train()] == [0, 0]
    scores = alone.artifact()["metrics"]["validation"]
    rows = list(Rows.open(dataset, "validation"))
    said = [r["prediction"] for r in Predictor.load(alone.jobs[0].artifact(1), bases["gpt2"]).predict(rows)]
    right: dict[str, list[bool]] = {}
    for row, prediction in zip(rows, said, strict=True):
        right.setdefault(row["label"], []).append(prediction == row["target"])
    each = {f"accuracy:a-{label}-thing": sum(hits) / len(hits) for label, hits in right.items()}
    assert len(each) == 2
    assert scores == pytest.approx({"accuracy": sum(each.values()) / 2, **each})
    assert set(alone.artifact()["baseline"]["validation"]) == set(scores)
    told = [e["values"] for e in alone.events(kind="metric") if e["split"] == "validation"]
    assert [set(values) for values in told] == [set(scores)] * 2
    assert [e["values"] for e in both.events(1, "metric") if e["split"] == "validation"] == told
