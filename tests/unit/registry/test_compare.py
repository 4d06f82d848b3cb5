"""Configurations, means over seeds and the paired test; scipy is the oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from queue_helpers import add_jobs, get, open_registry
from scipy import stats

from orchestrator.errors import BadInput
from orchestrator.registry.compare import compare, paired, sign_flip_p
from orchestrator.registry.jobs import Job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    registry = open_registry(tmp_path_factory.mktemp("home"))
    found = get(registry, add_jobs(registry)[0])
    registry.close()
    return found


def made(job: Job, number: int, seed: int, **method: Any) -> Job:
    recipe = {**job.recipe, "name": f"j{number}", "method": {**job.recipe["method"], **method}}
    recipe["train"] = {**recipe["train"], "seeds": [seed]}
    recipe["task"] = {**recipe["task"], "metrics": ["bleu"]}
    return replace(job, id=number, seed=seed, recipe=recipe)


def scores(**values: float) -> dict[str, dict[str, float | None]]:
    return {"test": dict(values), "validation": {"bleu": -1.0}, "train": {"loss": 9.0}}


@pytest.mark.parametrize("count", [2, 3, 5, 9])
def test_the_sign_flip_test_is_scipys(count: int) -> None:
    generator = np.random.default_rng(count)
    for shift in (0.0, 0.5, 5.0):
        differences = generator.normal(shift, 1, count)
        oracle = stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
        )
        assert sign_flip_p(list(differences)) == pytest.approx(oracle.pvalue)
    assert sign_flip_p([1.0] * count) == pytest.approx(2 / 2**count)
    assert sign_flip_p([0.0] * count) == 1.0


def test_seeds_from_before_and_after_a_new_key_are_one_configuration(job: Job) -> None:
    """And where the numbers go changes nothing. Of a falling metric's tasks the smallest is the best."""
    old = made(job, 1, 1)
    new = made(job, 2, 2)
    new.recipe["tracking"] = ["tensorboard"]
    new.recipe["train"] |= {"gradient_checkpointing": True}
    found = compare([old, new], {1: {"test": {"perplexity:wiki": 9.0}}, 2: {"test": {"perplexity:wiki": 3.0}}})
    assert (found.keys, len(found.configurations)) == ([], 1)
    assert found.configurations[0].best("perplexity:wiki") == (2, 3.0)


def test_jobs_that_differ_in_the_seed_alone_are_one_configuration(job: Job) -> None:
    jobs = [made(job, 10 * length + seed, seed, length=length) for length in (1, 5) for seed in (1, 2, 3)]
    values = {1: [60.0, 62.0, 61.0], 5: [64.0, 66.5, 65.0]}
    numbers = {j.id: scores(bleu=values[j.id // 10][j.seed - 1], loss=1.0) for j in jobs}
    found = compare(jobs, numbers)
    assert (found.keys, found.metrics) == (["method.length"], ["bleu", "loss"])
    best, other = found.configurations
    assert (best.settings, list(best.jobs.values())) == ({"method.length": 5}, [51, 52, 53])
    assert other.mean("bleu") == pytest.approx(np.mean(values[1]))
    assert other.deviation("bleu") == pytest.approx(np.std(values[1], ddof=1))
    pair = paired(other, best, "bleu")
    assert pair is not None
    assert (pair.seeds, pair.p) == (3, 0.25)
    assert pair.difference == pytest.approx(np.mean(np.subtract(values[1], values[5])))


def test_the_newer_of_two_runs_of_one_seed_counts_and_only_common_seeds_are_paired(job: Job) -> None:
    jobs = [made(job, 1, 1), made(job, 2, 1), made(job, 3, 7, length=9), made(job, 4, 1, length=9)]
    found = compare(jobs, {1: scores(bleu=1.0), 2: scores(bleu=2.0), 3: scores(bleu=50.0), 4: scores(bleu=3.0)})
    best, other = found.configurations
    assert (other.jobs, other.values["bleu"]) == ({1: 2}, {1: 2.0})
    pair = paired(other, best, "bleu")
    assert pair is not None
    assert (pair.seeds, pair.difference, pair.p) == (1, -1.0, None)


def test_a_loss_is_best_when_small(job: Job) -> None:
    jobs = [made(job, 1, 1, length=1), made(job, 2, 1, length=2)]
    found = compare(jobs, {1: scores(loss=2.0), 2: scores(loss=1.0)}, "loss")
    assert [list(one.jobs.values()) for one in found.configurations] == [[2], [1]]


def test_the_best_seed_is_named_apart(job: Job) -> None:
    jobs = [made(job, seed, seed) for seed in (3, 5, 8, 9)]
    (found,) = compare(
        jobs, {3: scores(bleu=6.0, loss=2.0), 5: scores(bleu=7.0), 8: scores(bleu=7.0, loss=1.0)}
    ).configurations
    assert found.best("bleu") == (5, 7.0)  # of two equal ones the smaller seed, however they were submitted
    assert found.best("loss") == (8, 1.0)
    assert found.best("rouge_l") is None


def test_without_numbers_there_is_nothing_to_compare(job: Job) -> None:
    with pytest.raises(BadInput, match="evaluated yet"):
        compare([made(job, 1, 1)], {})
    with pytest.raises(BadInput, match="has the metric 'x'"):
        compare([made(job, 1, 1)], {1: scores(bleu=1.0)}, "x")


def test_all_scores_are_on_the_rows_of_one_split(job: Job) -> None:
    """A score on validation rows beside one on test rows says nothing."""
    jobs = [made(job, 1, 1), made(job, 2, 1, length=5), made(job, 3, 1, length=9)]
    on_validation = {"validation": {"bleu": 90.0}}
    found = compare(jobs, {1: {"test": {"bleu": 60.0}}, 2: scores(bleu=70.0), 3: {"validation": {"loss": 1.0}}}, "bleu")
    assert (found.split, found.elsewhere) == ("test", [])
    found = compare(jobs, {1: {"test": {"bleu": 60.0}}, 2: {"test": {"bleu": 70.0}}, 3: on_validation})
    assert (found.split, found.elsewhere) == ("test", [3])
    assert [one.values.get("bleu", {}) for one in found.configurations] == [{1: 70.0}, {1: 60.0}, {}]
    both = {"validation": {"bleu": 50.0, "loss": 2.0}}
    found = compare(jobs, {1: both, 2: {**both, "test": {"bleu": 70.0}}, 3: on_validation})
    assert (found.split, found.elsewhere) == ("validation", [])
    assert [list(one.jobs.values()) for one in found.configurations] == [[3], [1], [2]]
    found = compare(jobs, {1: both, 2: {"test": {"bleu": 70.0}}, 3: on_validation}, metric="loss")
    assert (found.split, found.elsewhere) == ("validation", [])


def test_a_score_is_named_with_the_job_that_has_it(job: Job) -> None:
    jobs = [made(job, 1, 1), made(job, 7, 1), made(job, 8, 2), made(job, 9, 2)]
    found = compare(jobs, {1: scores(bleu=0.9, loss=1.0), 8: scores(bleu=0.5, loss=3.0), 9: scores(bleu=0.4)})
    (one,) = found.configurations
    assert one.jobs == {1: 1, 2: 9}  # 7 has failed without a score
    assert one.values == {"bleu": {1: 0.9, 2: 0.4}, "loss": {1: 1.0}}  # 9 has no loss, and does not borrow that of 8
