"""Every recipe that comes with ptq loads, is found by editors' schemas, and says what it is for and how it is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.recipe.document import read_document
from orchestrator.recipe.expand import expand
from orchestrator.recipe.load import load_recipe
from orchestrator.recipe.shipped import SCHEMA_HEADER, find_shipped, shipped_recipes

REPOSITORY = Path(__file__).resolve().parent.parent
FILES = sorted((REPOSITORY / "recipes").rglob("*.y*ml"))
RECIPES = [path for path in FILES if "pretrain" not in read_document(path)[1].data]


def named(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 3
    assert {path.suffix for path in FILES} == {".yaml"}


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_it_loads_and_makes_jobs(path: Path) -> None:
    assert expand(load_recipe(path).recipe)


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_editors_find_its_schema(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(SCHEMA_HEADER)
    schema = path.parent / first.removeprefix(SCHEMA_HEADER)
    assert schema.resolve() == REPOSITORY / "docs" / "reference" / "recipe.schema.json"
    assert schema.is_file()


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_it_opens_with_its_purpose_and_the_command(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    assert len(comment) > 2
    assert comment[1].startswith("# ")
    commands = [line.removeprefix("#").strip() for line in comment]
    assert any(line in {f"ptq submit {named(path)}", f"ptq run {named(path)}"} for line in commands)


def test_all_of_them_are_listed_with_a_purpose() -> None:
    listed = shipped_recipes()
    assert [recipe.path for recipe in listed] == FILES
    assert all(20 < len(recipe.purpose) < 300 for recipe in listed)
    assert find_shipped("zh/p-tuning").path == find_shipped("recipes/zh/p-tuning.yaml").path
