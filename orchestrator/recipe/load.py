"""A recipe file -> a checked recipe, or one report of everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from orchestrator.recipe import overrides as overriding
from orchestrator.recipe.document import Document, read_document
from orchestrator.recipe.expand import combinations
from orchestrator.recipe.faults import Fault, RecipeFaults, dotted
from orchestrator.recipe.messages import boolean_findings, findings
from orchestrator.recipe.schema import Recipe
from orchestrator.recipe.strict import Strict

Model = TypeVar("Model", bound=Strict)


@dataclass(frozen=True)
class LoadedRecipe:
    recipe: Recipe
    source: str  #: the file exactly as it stands
    path: Path
    overrides: tuple[str, ...] = ()


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read and check a recipe; `overrides` are `key=value` texts that go over the file's values.

    RecipeFaults (a BadRecipe) holds all faults with file and line, or `--set`; NotFound when there is no such file.
    """
    source, document = _read(path, overrides, Recipe)
    if "pretrain" in document.data:
        raise RecipeFaults(
            [Fault(document.place(("pretrain",)), "", "a recipe that pretrains a base is not submitted")]
        )
    recipe = _validated(document, Recipe)
    if recipe is not None and not document.faults:
        for finding in combinations(recipe)[1]:
            document.blame(finding.path, finding.message)
    if recipe is None or document.faults:
        raise RecipeFaults(_in_order(document))
    return LoadedRecipe(recipe, source, path, tuple(overrides))


def load_model(path: Path, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """The same reading and reporting for another kind of recipe (`recipe.pretrain`)."""
    _, document = _read(path, overrides, model)
    value = _validated(document, model)
    if value is None or document.faults:
        raise RecipeFaults(_in_order(document))
    return value


def _read(path: Path, overrides: Sequence[str], model: type[Strict]) -> tuple[str, Document]:
    source, document = read_document(path)
    overriding.apply(document, overrides, model)
    return source, document


def _validated(document: Document, model: type[Model]) -> Model | None:
    """The model, or None; everything found is added to the document's faults."""
    unread = {fault.key for fault in document.faults}  # not also of the wrong type
    found = boolean_findings(model, document.data)
    value = None
    try:
        value = model.model_validate(document.data)
    except ValidationError as error:
        found += findings(model, error)
    for finding in found:
        if dotted(finding.path) not in unread:
            document.blame(finding.path, finding.message)
    return value


def _in_order(document: Document) -> list[Fault]:
    return sorted(document.faults, key=lambda fault: _line(fault.where))


def _line(where: str) -> int:
    number = where.rpartition(":")[2]
    return int(number) if number.isdigit() else 1 << 30
