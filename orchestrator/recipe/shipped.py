"""The recipes that come with ptq: the checkout's `recipes/` folder, or the copy that a wheel carries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.errors import NotFound
from orchestrator.recipe.faults import did_you_mean

SCHEMA_HEADER = "# yaml-language-server: $schema="
_SCHEMA = Path("docs/reference/recipe.schema.json")


@dataclass(frozen=True)
class ShippedRecipe:
    name: str  #: path below `recipes/` without .yaml: sst2/prefix-tuning
    path: Path
    purpose: str  #: the first sentence of the comment at its top
    kind: Literal["train", "pretrain"]


def recipes_folder() -> Path:
    """The folder; NotFound where an installation has lost it."""
    package = Path(__file__).resolve().parents[1]
    carried = package / "shipped" / "recipes"  # see pyproject.toml
    folder = carried if carried.is_dir() else package.parent / "recipes"
    if not folder.is_dir():
        raise NotFound(
            "the recipes that come with ptq are not installed here",
            where=str(folder),
            hint="they lie in the folder recipes/ of ptq's repository; `ptq recipe schema` describes every key",
        )
    return folder


def shipped_recipes() -> list[ShippedRecipe]:
    """All of them, by name."""
    folder = recipes_folder()
    return [_describe(path, folder) for path in sorted(folder.rglob("*.yaml"))]


def find_shipped(name: str) -> ShippedRecipe:
    """By name (`sst2/prefix-tuning`, or its last part where only one has it); NotFound with the nearest name."""
    recipes = shipped_recipes()
    wanted = name.removesuffix(".yaml").removeprefix("recipes/")
    found = [recipe for recipe in recipes if recipe.name == wanted]
    found = found or [recipe for recipe in recipes if recipe.name.split("/")[-1] == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        raise NotFound(f"several recipes are called `{wanted}`: {', '.join(recipe.name for recipe in found)}")
    meant = did_you_mean(wanted, [recipe.name for recipe in recipes])
    raise NotFound(f"there is no recipe `{name}` among those that come with ptq{meant}", hint="ptq recipe list")


def copy_text(recipe: ShippedRecipe, destination: Path) -> str:
    """The file's text for a copy elsewhere: its first line points at the same schema from there."""
    text = recipe.path.read_text(encoding="utf-8")
    schema = recipes_folder().parent / _SCHEMA
    first, newline, rest = text.partition("\n")
    if first.startswith(SCHEMA_HEADER):
        return f"{SCHEMA_HEADER}{schema.as_uri()}{newline}{rest}" if schema.is_file() else rest
    return text


def _describe(path: Path, folder: Path) -> ShippedRecipe:
    lines = path.read_text(encoding="utf-8").splitlines()
    name = path.relative_to(folder).with_suffix("").as_posix()
    pretrain = any(line.startswith("pretrain:") for line in lines)
    return ShippedRecipe(name, path, _purpose(lines), "pretrain" if pretrain else "train")


def _purpose(lines: list[str]) -> str:
    words: list[str] = []
    for line in lines:
        if line.startswith(SCHEMA_HEADER):
            continue
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text:
            break
        words.append(text)
    sentence, stop, _ = " ".join(words).partition(". ")
    return sentence + stop.strip()
