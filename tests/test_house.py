"""The directions in which imports may point, and what each tower must never load."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "orchestrator"

GROUND = {
    "errors",
    "states",
    "paths",
    "settings",
    "events",
    "jobspec",
    "manifest",
    "weights",
    "companions",
    "values",
    "cost",
    "sharing",
    "failpoints",
}
#: Each room and what it may import of ours.
ROOMS: dict[str, set[str]] = {
    "recipe": {"recipe", "tasks"},  # templates are checked when a recipe is read
    "tasks": set(),
    "tuning": {"recipe", "tasks"},
    "training": {"recipe", "tasks", "tuning"},
    "data": set(),
    "registry": {"recipe", "data"},
    "dispatch": {"recipe", "tasks", "registry"},
    "demo": set(),
    "cli": {"recipe", "tasks", "data", "registry", "dispatch", "demo"},
}
TENSOR = {"torch", "transformers", "accelerate", "deepspeed", "datasets", "safetensors", "tokenizers", "peft"}
FORBIDDEN = dict.fromkeys(("recipe", "tasks", "data", "registry", "dispatch", "cli", "demo"), TENSOR) | {
    "tuning": {"sqlalchemy", "alembic", "typer", "datasets", "pyarrow", "accelerate", "deepspeed"},
    "training": {"sqlalchemy", "alembic", "typer"},
}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function, but for type checkers only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def files(room: str) -> list[Path]:
    found = sorted((PACKAGE / room).rglob("*.py"))
    assert found, f"{room} is empty"
    return found


def own_rooms(path: Path) -> set[str]:
    parts = [name.split(".") for name in imported(path) if name.startswith("orchestrator.")]
    return {part[1] for part in parts if (PACKAGE / part[1]).is_dir() or (PACKAGE / f"{part[1]}.py").is_file()}


def test_every_room_is_in_the_plan() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert rooms == set(ROOMS)
    assert modules == GROUND


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_downwards(room: str) -> None:
    for path in files(room):
        upwards = own_rooms(path) - GROUND - ROOMS[room] - {room}
        assert not upwards, f"{path.relative_to(PACKAGE)} imports {upwards}"


def test_the_ground_floor_is_the_standard_library() -> None:
    for module in GROUND:
        path = PACKAGE / f"{module}.py"
        assert own_rooms(path) <= GROUND, path
        assert not {name.split(".")[0] for name in imported(path)} & (TENSOR | {"sqlalchemy", "pydantic", "yaml"})


@pytest.mark.parametrize("room", FORBIDDEN)
def test_towers_stay_apart(room: str) -> None:
    for path in files(room):
        loaded = {name.split(".")[0] for name in imported(path)} & FORBIDDEN[room]
        assert not loaded, f"{path.relative_to(PACKAGE)} imports {loaded}"


def test_only_the_registry_knows_the_database() -> None:
    for room in set(ROOMS) - {"registry"}:
        for path in files(room):
            assert not any(name.split(".")[0] in {"sqlalchemy", "alembic", "sqlite3"} for name in imported(path)), path


def test_only_settings_reads_the_environment() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.name != "settings.py":
            text = path.read_text(encoding="utf-8")
            assert "os.environ" not in text, path
            assert "getenv" not in text, path
