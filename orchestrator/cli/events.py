"""`ptq events`: everything that happened to a job, dated, with who did it."""

from __future__ import annotations

from typing import Any

import typer

from orchestrator.cli.common import Json, OneJob
from orchestrator.cli.output import render


def register(app: typer.Typer) -> None:
    @app.command()
    def events(
        job: OneJob,
        as_json: Json = False,
    ) -> None:
        """Show what happened to a job, when and by whom."""
        from orchestrator.cli.common import open_registry
        from orchestrator.cli.output.views import clock, one_job
        from orchestrator.registry import history

        registry = open_registry()
        found = one_job(registry, job)
        with registry.read() as conn:
            happened = history.list_events(conn, found.id)
        if as_json:
            render.print_json([vars(event) for event in happened])
            return
        rows = [(clock(one.at), one.attempt, one.actor, one.kind, _words(one.detail)) for one in happened]
        render.table(("at", "attempt", "actor", "state", "detail"), rows, right=("attempt",))


def _words(detail: dict[str, Any]) -> str:
    shown = {key: value for key, value in detail.items() if key not in {"from", "message"}}
    parts = [
        f"{key} {', '.join(map(str, value)) if isinstance(value, list) else value}" for key, value in shown.items()
    ]
    message = str(detail.get("message") or "").partition("\n")[0]
    return "; ".join([*parts, *([message] if message else [])])
