"""Comparisons of jobs as text: their grid, and how its cells and settings are written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.cli.output import render
from orchestrator.errors import BadInput

if TYPE_CHECKING:
    from orchestrator.registry.compare import Comparison, Configuration


def grid_of(found: Comparison) -> tuple[list[Any], list[Any], dict[tuple[int, int], Configuration]]:
    """(values of the rows, of the columns, cells by their numbers). Raises BadInput unless two settings vary."""
    if len(found.keys) != 2:
        vary = ", ".join(found.keys) or "none does"
        raise BadInput(
            f"a grid has two settings that vary; here: {vary}", where="--grid", hint="choose jobs with --where"
        )
    axes = [_sorted({repr(one.settings[key]): one.settings[key] for one in found.configurations}) for key in found.keys]
    cells = {
        (axes[0].index(one.settings[found.keys[0]]), axes[1].index(one.settings[found.keys[1]])): one
        for one in found.configurations
    }
    return axes[0], axes[1], cells


def _sorted(values: dict[str, Any]) -> list[Any]:
    plain = all(isinstance(value, int | float) for value in values.values())
    return sorted(values.values(), key=(lambda value: value) if plain else repr)


def spread(one: Configuration, metric: str) -> str:
    mean, deviation = one.mean(metric), one.deviation(metric)
    return render.number(mean) if mean is None or deviation is None else f"{mean:.4g} ± {deviation:.2g}"


def best_seed(one: Configuration, metric: str) -> str:
    """`0.871 (2)`: the best seed's value and the seed; empty below two seeds, whose mean is that value."""
    found = one.best(metric)
    return "" if found is None or one.deviation(metric) is None else f"{render.number(found[1])} ({found[0]})"


def short_keys(keys: list[str]) -> list[str]:
    """The last parts where they tell the keys apart: `length` for `method.length`."""
    last = [key.rpartition(".")[2] for key in keys]
    return [short if last.count(short) == 1 and short != "type" else key for short, key in zip(last, keys, strict=True)]
