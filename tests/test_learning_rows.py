"""The rows of the proof of learning: each is a recipe, and each claim is about rows that are there."""

from __future__ import annotations

from collections import Counter

import pytest

from orchestrator.recipe.schema import Recipe
from tests.benchmarks.learning_claims import all_claims
from tests.benchmarks.learning_data import base_recipes
from tests.benchmarks.learning_rows import adaptations, all_rows, needed

pytestmark = pytest.mark.usefixtures("shared_data")


def test_every_row_is_a_recipe() -> None:
    for plan in (*needed(all_rows()), *adaptations().values()):
        for seed in plan.seeds:
            assert Recipe.model_validate(plan.recipe(seed)).train.seeds == [seed]


def test_rows_of_one_name_say_the_same() -> None:
    said: dict[str, object] = {}
    for plan in (plan for plan in needed(all_rows()) if not plan.ensemble):
        assert said.setdefault(plan.recipe(1)["name"], plan.recipe(1)) == plan.recipe(1)


def test_a_table_has_no_row_twice() -> None:
    assert [row for row, often in Counter((plan.part, plan.row) for plan in all_rows()).items() if often > 1] == []


def test_every_claim_is_about_rows_of_the_page() -> None:
    there = {plan.name for plan in all_rows()}
    for claim in all_claims():
        assert {claim.more.name, claim.less.name} <= there, claim.paper
        assert claim.more.name != claim.less.name


def test_every_base_is_pretrained_added_or_adapted_here() -> None:
    made = {"minilm", *base_recipes(), *adaptations()}
    assert {plan.base for plan in all_rows()} <= made


def test_a_row_that_starts_from_others_names_those_of_its_own_seed() -> None:
    starting = [plan for plan in all_rows() if plan.starts]
    assert starting
    for plan in starting:
        named = plan.recipe(2)["method"]["init"]["artifact"]
        assert named == [f"{start.name}@seed-2" for start in plan.starts]
        assert {start.name for start in plan.starts} <= {one.name for one in needed([plan])}
