"""`ptq jobs`: all jobs there ever were, filtered and sorted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.common import Json
from orchestrator.cli.output import render

if TYPE_CHECKING:
    from orchestrator.registry.jobs import Job

LIMIT = 50

Where = Annotated[
    str, typer.Option("--where", "-w", metavar="FILTER", help="for example 'method=prefix-tuning and metrics.bleu>60'")
]


def register(app: typer.Typer) -> None:
    @app.command("jobs")
    def jobs(
        where: Where = "",
        sort: Annotated[
            list[str] | None, typer.Option("--sort", metavar="FIELD", help="-FIELD: largest first; repeatable")
        ] = None,
        columns: Annotated[
            str | None,
            typer.Option("--columns", metavar="A,B", help="fields to show, for example id,name,metrics.bleu"),
        ] = None,
        limit: Annotated[int, typer.Option("--limit", min=0, help="show at most this many; 0: all")] = LIMIT,
        fields: Annotated[bool, typer.Option("--fields", help="list the names that --where and --sort know")] = False,
        json: Json = False,
    ) -> None:
        """List jobs, with a filter and in any order."""
        if fields:
            _fields(json)
        else:
            _list(where, sort or [], columns, limit, json)


def _fields(json: bool) -> None:
    from orchestrator.registry.search import fields

    known = fields()
    if json:
        render.print_json(known)
    else:
        render.table(["field", "meaning"], list(known.items()))


def _list(where: str, sort: Sequence[str], columns: str | None, limit: int, json: bool) -> None:
    from orchestrator.cli.common import open_registry, words
    from orchestrator.cli.output.views import job_json
    from orchestrator.registry import jobs, metrics, search

    registry = open_registry(create=True)
    asked = [name.removeprefix("-") for name in [*sort, *search.names_in(where)]]
    numbers_asked = [name for name in dict.fromkeys(asked) if name.startswith(("metrics.", "baseline.", "recipe."))]
    chosen = words([columns]) if columns else tuple(numbers_asked)
    with registry.read() as connection:
        found = search.find(connection, where, sort, limit=limit or None)
        by_id = {job.id: job for job in jobs.list_jobs(connection, ids=found.ids)}
        numbers = metrics.latest(connection, found.ids)
        cells = search.values(connection, found.ids, chosen)
    shown = [by_id[job_id] for job_id in found.ids]
    if json:
        extra = {job.id: {"fields": cells[job.id]} if chosen else {} for job in shown}
        render.print_json([job_json(job, numbers.get(job.id, {})) | extra[job.id] for job in shown])
        return
    if not shown:
        render.note("no job matches" if where else "no jobs yet; submit one with `ptq submit RECIPE`")
        return
    if columns:
        render.table(chosen, [[_cell(cells[job.id][name]) for name in chosen] for job in shown], right=chosen)
    else:
        _table(shown, numbers, chosen, cells)
    if found.total > len(shown):
        render.note(f"{len(shown):,} of {found.total:,} jobs; more with --limit N, all with --limit 0")


def _table(shown: Sequence[Job], numbers: Any, asked: Sequence[str], cells: Any) -> None:
    """Who, what, and the numbers that were asked about, else each job's leading metric."""
    from orchestrator.cli.output.views import leading_metric

    rows = [
        [job.id, job.name, job.user, job.result or job.state, job.reason if job.result else "", job.method, job.dataset]
        + ([_cell(cells[job.id][name]) for name in asked] if asked else [leading_metric(job, numbers.get(job.id, {}))])
        for job in shown
    ]
    short = [name.partition(".")[2] for name in asked]
    render.table(
        ["id", "name", "user", "state", "reason", "method", "dataset", *(short or ["metric"])], rows,
        right=("id", *short),
    )  # fmt: skip


def _cell(value: Any) -> object:
    return "-" if value is None else value if isinstance(value, int | float | str) else str(value)
