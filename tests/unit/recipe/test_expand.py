from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_texts import DESIGN, SMALL

from orchestrator.recipe.expand import MOST_JOBS, expand
from orchestrator.recipe.faults import RecipeFaults
from orchestrator.recipe.load import load_recipe
from orchestrator.recipe.schema import JobRecipe, Recipe

Write = Callable[[str | bytes], Path]


def small(**changes: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "small",
            "base": "gpt2",
            "dataset": "d",
            "task": {"type": "generate", "input": "{a}", "target": "{b}"},
            "method": {"type": "prompt-tuning"},
            "train": {"steps": 3, "lr": 0.1, "seeds": changes.pop("seeds", [1])},
            **changes,
        }
    )


def test_every_combination_with_every_seed(write: Write) -> None:
    jobs = expand(load_recipe(write(DESIGN)).recipe)
    assert [(job.method.length, job.seed) for job in jobs] == [  # type: ignore[union-attr]
        (length, seed) for length in (1, 5, 20, 100) for seed in (1, 2, 3)
    ]
    assert [job.name for job in jobs][:4] == [
        "e2e-prefix-length-1-seed-1",
        "e2e-prefix-length-1-seed-2",
        "e2e-prefix-length-1-seed-3",
        "e2e-prefix-length-5-seed-1",
    ]


def test_one_job_keeps_the_recipes_name_and_contents(write: Write) -> None:
    recipe = load_recipe(write(SMALL)).recipe
    (job,) = expand(recipe)
    assert job.model_dump() == recipe.model_dump()


def test_jobs_survive_their_own_json(write: Write) -> None:
    for job in expand(load_recipe(write(DESIGN)).recipe):
        assert JobRecipe.model_validate(job.model_dump(mode="json")) == job


def test_a_swept_method_is_named_by_its_type() -> None:
    jobs = expand(small(sweep={"method": [{"type": "prefix-tuning"}, {"type": "p-tuning", "length": 3}]}))
    assert [job.name for job in jobs] == ["small-method-prefix-tuning", "small-method-p-tuning"]


def test_a_swept_type_leaves_the_other_types_defaults_behind() -> None:
    jobs = expand(small(sweep={"method.type": ["prompt-tuning", "prefix-tuning"]}))
    assert [job.method.length for job in jobs] == [20, 10]  # type: ignore[union-attr]


def test_a_sweep_may_give_what_the_recipe_alone_lacks() -> None:
    jobs = expand(small(method={"type": "p-tuning"}, sweep={"method.length": [2, 4]}))
    assert [job.method.length for job in jobs] == [2, 4]  # type: ignore[union-attr]


def test_names_tell_awkward_values_apart() -> None:
    jobs = expand(small(sweep={"task.input": ["{a} x", "{a}-x", "{a}" * 60, "总{a}", "体{a}"]}))
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) for name in names)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sweep": {"method.length": []}}, "sweep.method.length: has no values"),
        ({"sweep": {"method.length": [2, 2]}}, "sweep.method.length: the value 2 stands 2 times"),
        ({"sweep": {"method.lenght": [2]}}, "sweep.method.lenght: 2: unknown key; did you mean `length`?"),
        ({"sweep": {"method.length": [0]}}, "sweep.method.length: 0: must be greater than or equal to 1, not 0"),
        ({"sweep": {"train.steps": [True]}}, "sweep.train.steps: true: must be a number, not true"),
        ({"sweep": {"train.seeds": [[1], [2]]}}, "sweep.train.seeds: cannot be swept; write train.seeds: [1, 2, 3]"),
        ({"sweep": {"name": ["a"]}}, "sweep.name: cannot be swept; jobs are named by what is swept"),
        ({"sweep": {"train.lr.x": [1]}}, "sweep.train.lr.x: `train.lr` holds no keys; set it as a whole"),
        ({"sweep": {"": [1]}}, "is not a dotted key such as method.length"),
        (
            {"sweep": {"method": [{"type": "head"}], "method.length": [1]}},
            "sweep.method.length: lies inside `method`, which is swept too",
        ),
        (
            {"sweep": {"method.type": ["head"], "method.init.type": ["text"]}},
            "sweep.method.init.type: text: method.init unknown key",
        ),
        ({"seeds": list(range(MOST_JOBS + 1))}, "sweep: makes 1,001 jobs; 1,000 at most"),
    ],
)
def test_faults_name_the_swept_key(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeFaults) as caught:
        expand(small(**changes))
    assert said in str(caught.value)


@given(
    lengths=st.lists(st.integers(1, 99), min_size=1, max_size=4, unique=True),
    rates=st.lists(st.floats(1e-6, 1), min_size=1, max_size=4, unique=True),
    seeds=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=3, unique=True),
)
def test_the_jobs_are_the_product(lengths: list[int], rates: list[float], seeds: list[int]) -> None:
    jobs = expand(small(seeds=seeds, sweep={"method.length": lengths, "train.lr": rates}))
    made = [(job.method.length, job.train.lr, job.seed) for job in jobs]  # type: ignore[union-attr]
    assert made == [(length, rate, seed) for length in lengths for rate in rates for seed in seeds]
    assert len({job.name for job in jobs}) == len(jobs)


def test_a_recipe_that_trains_nothing_needs_no_train() -> None:
    raw = {"name": "n", "base": "b", "dataset": "d", "task": {"type": "classify", "input": "{t}", "labels": ["a", "b"]}}
    recipe = Recipe.model_validate({**raw, "method": {"type": "prompt-design"}, "sweep": {"method.shots": [0, 2]}})
    assert [(job.name, job.seed) for job in expand(recipe)] == [("n-shots-0", 1), ("n-shots-2", 1)]
