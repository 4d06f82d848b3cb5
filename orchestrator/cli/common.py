"""What several verbs share."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.complete import complete_jobs, complete_recipes

if TYPE_CHECKING:
    from orchestrator.registry.storage.engine import Registry

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")]

OneJob = Annotated[str, typer.Argument(metavar="JOB", autocompletion=complete_jobs)]
SomeJobs = Annotated[
    list[str], typer.Argument(metavar="JOB...", help="ids, or groups as g12", autocompletion=complete_jobs)
]
AnyJobs = Annotated[
    list[str] | None, typer.Argument(metavar="[JOB]...", help="ids, or groups as g12", autocompletion=complete_jobs)
]
Recipes = Annotated[
    list[Path], typer.Argument(metavar="RECIPE...", help="recipe files", autocompletion=complete_recipes)
]


def open_registry(*, create: bool = False) -> Registry:
    from orchestrator.registry.storage.engine import Registry
    from orchestrator.settings import load_settings

    return Registry.open(load_settings(), create=create)


def when(seconds: float) -> str:
    """A moment in local time, to the minute."""
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def words(values: Sequence[str] | None) -> tuple[str, ...]:
    """`--x a,b --x c` as (a, b, c)."""
    return tuple(part.strip() for value in values or () for part in value.split(","))


def size(count: int) -> str:
    """`812 B`, `12.3 KB`, `4.1 MB`: powers of 1000."""
    units = ("KB", "MB", "GB", "TB")
    amount, unit = float(count), -1
    while amount >= 1000 and unit < len(units) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{count} B" if unit < 0 else f"{amount:.1f} {units[unit]}"
