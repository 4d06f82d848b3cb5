from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_texts import DESIGN, SMALL

from orchestrator.recipe.document import Document
from orchestrator.recipe.expand import expand
from orchestrator.recipe.load import load_recipe
from orchestrator.recipe.overrides import apply
from orchestrator.recipe.schema import Recipe

Faults = Callable[..., list[str]]
Write = Callable[[str | bytes], Path]


def test_a_value_is_put_over_the_files(write: Write) -> None:
    recipe = load_recipe(write(SMALL), ["train.lr=1e-3", "method.length=7", "train.eval_every=5"]).recipe
    assert (recipe.train.lr, recipe.train.eval_every) == (1e-3, 5)
    assert recipe.method.length == 7  # type: ignore[union-attr]


def test_the_last_of_two_wins(write: Write) -> None:
    assert load_recipe(write(SMALL), ["train.lr=1", "train.lr=2"]).recipe.train.lr == 2


def test_mappings_on_the_way_are_made(write: Write) -> None:
    assert load_recipe(write(SMALL), ["resources.time_limit=90s"]).recipe.resources.time_limit == 90


def test_a_base_given_by_name_takes_keys(write: Write) -> None:
    base = load_recipe(write(SMALL), ["base.dtype=bf16"]).recipe.base
    assert (base.model, base.dtype) == ("gpt2", "bf16")


def test_a_text_key_takes_its_text_as_it_is(write: Write) -> None:
    path = write(SMALL)
    for text in ("{a} -> ", "[1] {a}", "a: {a}", "- {a}", "'{a}"):
        assert load_recipe(path, [f"task.input={text}"]).recipe.task.input == text
    assert load_recipe(path, ["name=2024"]).recipe.name == "2024"
    assert load_recipe(path, ["base.revision=123"]).recipe.base.revision == "123"
    assert load_recipe(path, ["base.revision=null"]).recipe.base.revision is None
    assert load_recipe(path, ["task.input='{a} = b'"]).recipe.task.input == "{a} = b"


@pytest.mark.parametrize(
    ("override", "expected"),
    [("train.seed=5", [5]), ("train.seeds=[5, 6]", [5, 6])],
)
def test_one_way_to_give_seeds_replaces_the_other(write: Write, override: str, expected: list[int]) -> None:
    for text in (SMALL.replace("lr: 0.1", "lr: 0.1, seed: 9"), SMALL.replace("lr: 0.1", "lr: 0.1, seeds: [8, 9]")):
        assert load_recipe(write(text), [override]).recipe.train.seeds == expected


def test_epochs_replace_steps(write: Write) -> None:
    train = load_recipe(write(SMALL), ["train.epochs=2"]).recipe.train
    assert (train.steps, train.epochs) == (None, 2)


def test_a_swept_key_that_is_set_is_swept_no_longer(write: Write) -> None:
    recipe = load_recipe(write(DESIGN), ["method.length=7", "train.seed=1"]).recipe
    assert recipe.sweep == {}
    assert [job.method.length for job in expand(recipe)] == [7]  # type: ignore[union-attr]


def test_a_sweep_can_be_set(write: Write) -> None:
    recipe = load_recipe(write(SMALL), ["sweep.train.lr=[1e-3, 1e-2]"]).recipe
    assert [job.train.lr for job in expand(recipe)] == [1e-3, 1e-2]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.lr", "--set: `train.lr` is not key=value; write for example --set train.lr=1e-3"),
        ("=3", "--set: `=3` is not key=value"),
        ("train..lr=3", "--set: `train..lr=3` is not key=value"),
        ("train.lr=x", "--set: train.lr: must be a valid number, not 'x'"),
        ("train.lrr=1", "--set: train.lrr: unknown key; did you mean `lr`?"),
        ("trian.lr=1", "--set: trian: unknown key; did you mean `train`?"),
        ("train.lr.x=1", "--set: train.lr.x: `train.lr` holds no keys; set it as a whole"),
        ("train.seeds=[1", "--set: train.seeds: not a YAML value: "),
        ("train.seeds=[1, x]", "--set: train.seeds[1]: must be a valid integer, not 'x'"),
        ("train.lr=!!python/name:os.system", "--set: train.lr: the YAML tag `!!python/name:os.system` is refused"),
        ("train=5", "--set: train: must be a mapping"),
        ("method.type=prefix", "--set: method.type: 'prefix' is not one of prompt-tuning, prefix-tuning"),
        ("sweep.method.length=[0]", "--set: sweep.method.length: 0: must be greater than or equal to 1, not 0"),
    ],
)
def test_faults_say_that_they_come_from_the_command_line(faults: Faults, override: str, said: str) -> None:
    report = faults(SMALL, override)
    assert len(report) == 1
    assert report[0].startswith(said)


def test_faults_of_the_file_keep_their_lines(faults: Faults) -> None:
    assert faults(SMALL.replace("steps: 3", "steps: x"), "train.lr=y") == [
        "6: train.steps: must be a valid integer, not 'x'",
        "--set: train.lr: must be a valid number, not 'y'",
    ]


def test_setting_a_wrong_value_right_leaves_no_fault(faults: Faults) -> None:
    assert faults(SMALL.replace("lr: 0.1", "lr: x"), "train.lr=1") == []


keys = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map(tuple)
values = st.one_of(st.integers(), st.text(max_size=5), st.lists(st.integers(), max_size=2), st.booleans(), st.none())


@given(st.lists(st.tuples(keys, values), max_size=6))
def test_setting_is_assignment(assignments: list[tuple[tuple[str, ...], object]]) -> None:
    """Against plain dictionaries: what is set is there, unless a later key went through or over it."""
    document = Document({}, {(): "file:1"})
    apply(document, [f"{'.'.join(key)}={json.dumps(value)}" for key, value in assignments], Recipe)
    expected: dict[str, object] = {}
    refused = 0
    for key, value in assignments:
        inside: object = expected
        for part in key[:-1]:
            if isinstance(inside, dict):
                if inside.get(part) is None:
                    inside[part] = {}
                inside = inside[part]
        if isinstance(inside, dict):
            inside[key[-1]] = value
        else:
            refused += 1
    assert document.data == expected
    assert len(document.faults) == refused
