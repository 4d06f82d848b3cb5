"""`ptq compare`: jobs side by side: what differs, mean and deviation over seeds, a paired test; sweeps as a grid."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.common import Json
from orchestrator.cli.jobs import Where
from orchestrator.cli.output import render
from orchestrator.cli.output.grids import best_seed, grid_of, short_keys, spread
from orchestrator.errors import BadInput, NotFound

if TYPE_CHECKING:
    from orchestrator.registry.compare import Comparison, Configuration

_SHOWN_METRICS = 3


def register(app: typer.Typer) -> None:
    @app.command("compare")
    def compare(
        jobs: Annotated[list[str] | None, typer.Argument(metavar="[JOB]...", help="ids, or groups as g12")] = None,
        where: Where = "",
        metric: Annotated[str | None, typer.Option("--metric", metavar="NAME", help="this metric alone")] = None,
        grid: Annotated[bool, typer.Option("--grid", help="two settings that vary, as rows and columns")] = False,
        output: Annotated[
            Path | None, typer.Option("--output", "-o", metavar="FILE", help="draw it: .png, .svg or .pdf")
        ] = None,
        json: Json = False,
    ) -> None:
        """Compare jobs: jobs that differ in the seed alone are one row, best first."""
        found = _comparison(jobs or [], where, metric)
        if output is not None:
            _draw(found, output)
        elif json:
            render.print_json(_json(found))
        elif grid:
            _grid(found)
        else:
            _table(found)


def _comparison(references: list[str], where: str, metric: str | None) -> Comparison:
    from orchestrator.cli.common import open_registry
    from orchestrator.registry import compare, jobs, metrics, search

    if not references and not where:
        raise BadInput("nothing to compare", hint="name jobs or a group: `ptq compare g3`, or give --where FILTER")
    registry = open_registry()
    with registry.read() as connection:
        named = jobs.resolve(connection, references) if references else None
        ids = search.find(connection, where, ids=named).ids
        found = jobs.list_jobs(connection, ids=ids)
        numbers = metrics.latest(connection, ids)
    if not found:
        raise NotFound("no job matches", where=where, hint="look with `ptq jobs --where …`")
    return compare.compare(found, numbers, metric)


def _table(found: Comparison) -> None:
    from orchestrator.registry.compare import paired

    best, first = found.configurations[0], found.metrics[0]
    shown = found.metrics[: 1 if render.is_narrow() else _SHOWN_METRICS]
    rows = []
    for one in found.configurations:
        against = None if one is best else paired(one, best, first)
        difference = "" if against is None else f"{against.difference:+.3g}"
        p = "" if against is None or against.p is None else f"{against.p:.2g} ({against.seeds})"
        settings = [_setting(one.settings[key]) for key in found.keys]
        numbers = [spread(one, first), best_seed(one, first), *(spread(one, name) for name in shown[1:])]
        rows.append([*settings, len(one.jobs), *numbers, difference, p, _ids(one)])
    keys = short_keys(found.keys)
    names = [*keys, "seeds", first, "best (seed)", *shown[1:], "to best", "p (pairs)", "jobs"]
    render.table(names, rows, right=("seeds", "to best", "p (pairs)"))
    _say_on_which_rows(found)
    if any(len(one.jobs) > 1 for one in found.configurations):
        render.note("mean ± standard deviation over seeds; apart from it the best seed, chosen by its score")
        render.note(f"p: exact paired sign-flip test of {first} against the best row")
    if len(found.metrics) > len(shown):
        render.note(f"more with --metric: {', '.join(found.metrics[len(shown) :])}")


def _say_on_which_rows(found: Comparison) -> None:
    render.note(f"scores on the {found.split} rows")
    if found.elsewhere:
        from orchestrator.dispatch.scheduling.reasons import id_ranges

        which = f"job{'s' * (len(found.elsewhere) > 1)} {id_ranges(found.elsewhere)}"
        render.note(f"{which}: scored on other rows only, so not compared")


def _grid(found: Comparison) -> None:
    rows, columns, cells = grid_of(found)
    corner = f"{short_keys(found.keys)[0]} / {short_keys(found.keys)[1]}"
    metric = found.metrics[0]
    lines = [
        [_setting(row), *(spread(cells[r, c], metric) if (r, c) in cells else "" for c in range(len(columns)))]
        for r, row in enumerate(rows)
    ]
    names = [_setting(column) for column in columns]
    render.table([corner, *names], lines, right=names)
    render.note(f"{metric}: mean ± standard deviation over seeds")
    _say_on_which_rows(found)


def _draw(found: Comparison, output: Path) -> None:
    from orchestrator.cli.output.heatmap import draw
    from orchestrator.cli.plot import refuse_suffix

    refuse_suffix(output)
    draw(found, output)
    render.say(str(output))


def _json(found: Comparison) -> dict[str, Any]:
    from orchestrator.registry.compare import paired

    best = found.configurations[0]
    return {
        "settings": found.keys,
        "metrics": found.metrics,
        "split": found.split,
        "scored_elsewhere": found.elsewhere,
        "configurations": [
            {
                "settings": one.settings,
                "jobs": list(one.jobs.values()),
                "seeds": list(one.jobs),
                "values": one.values,
                "mean": {name: one.mean(name) for name in found.metrics},
                "std": {name: one.deviation(name) for name in found.metrics},
                "best": {name: _best(one, name) for name in found.metrics},
                "to_best": {
                    name: None if one is best or pair is None else vars(pair)
                    for name in found.metrics
                    for pair in [paired(one, best, name)]
                },
            }
            for one in found.configurations
        ],
    }


def _best(one: Configuration, metric: str) -> dict[str, Any] | None:
    found = one.best(metric)
    return None if found is None else {"seed": found[0], "job": one.jobs[found[0]], "value": found[1]}


def _setting(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _ids(one: Configuration) -> str:
    from orchestrator.dispatch.scheduling.reasons import id_ranges

    return id_ranges(one.jobs.values())
