"""Pictures of comparisons: two settings that vary as a heat map, one as a line, others as bars."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib import pyplot

from orchestrator.cli.output.grids import grid_of, short_keys, spread
from orchestrator.errors import BadInput

if TYPE_CHECKING:
    from orchestrator.registry.compare import Comparison

_BLUE = "#0072B2"
_MOST_BARS = 40


def draw(found: Comparison, output: Path) -> None:
    """Write the picture of the first metric. Raises BadInput for more bars than a picture holds."""
    matplotlib.use("Agg")
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    if len(found.keys) == 2 and len(found.configurations) > 2:
        _heat_map(found, figure, axes)
    elif len(found.keys) == 1 and all(
        isinstance(one.settings[found.keys[0]], int | float) for one in found.configurations
    ):
        _line(found, axes)
    else:
        _bars(found, axes)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
    pyplot.close(figure)


def _heat_map(found: Comparison, figure: Any, axes: Any) -> None:
    rows, columns, cells = grid_of(found)
    metric = found.metrics[0]
    means = [
        [cells[r, c].mean(metric) if (r, c) in cells else None for c in range(len(columns))] for r in range(len(rows))
    ]
    numbers = [[float("nan") if value is None else value for value in row] for row in means]
    image = axes.imshow(numbers, cmap="cividis", aspect="auto")
    known = [value for row in means for value in row if value is not None]
    middle = (min(known) + max(known)) / 2
    for (r, c), one in cells.items():
        value = one.mean(metric)
        colour = "black" if value is not None and value > middle else "white"
        axes.text(c, r, spread(one, metric), ha="center", va="center", color=colour, fontsize=9)
    names = short_keys(found.keys)
    axes.set_yticks(range(len(rows)), [str(value) for value in rows])
    axes.set_xticks(range(len(columns)), [str(value) for value in columns])
    axes.set_ylabel(names[0])
    axes.set_xlabel(names[1])
    axes.set_title(metric, loc="left", fontsize=11)
    figure.colorbar(image, ax=axes)


def _line(found: Comparison, axes: Any) -> None:
    key, metric = found.keys[0], found.metrics[0]
    points = sorted(
        ((one.settings[key], one) for one in found.configurations if one.mean(metric) is not None),
        key=lambda point: point[0],
    )
    x = [value for value, _ in points]
    y = [one.mean(metric) for _, one in points]
    errors = [one.deviation(metric) or 0.0 for _, one in points]
    axes.errorbar(x, y, yerr=errors, marker="o", capsize=3, color=_BLUE)
    if min(x) > 0 and max(x) / min(x) >= 20:
        axes.set_xscale("log")
    axes.set_xlabel(short_keys([key])[0])
    _decorate(axes, metric)


def _bars(found: Comparison, axes: Any) -> None:
    metric = found.metrics[0]
    shown = [one for one in found.configurations if one.mean(metric) is not None]
    if len(shown) > _MOST_BARS:
        raise BadInput(f"{len(shown)} bars are too many for a picture", hint="choose jobs with --where")
    names = short_keys(found.keys)
    labels = [
        ", ".join(f"{name} {one.settings[key]}" for name, key in zip(names, found.keys, strict=True)) for one in shown
    ]
    axes.barh(
        range(len(shown)), [one.mean(metric) for one in shown], xerr=[one.deviation(metric) or 0.0 for one in shown],
        color=_BLUE, capsize=3,
    )  # fmt: skip
    axes.set_yticks(range(len(shown)), [label or "all" for label in labels], fontsize=8)
    axes.invert_yaxis()
    _decorate(axes, metric)


def _decorate(axes: Any, metric: str) -> None:
    axes.set_title(f"{metric}: mean and standard deviation over seeds", loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
