"""`ptq plot`: loss curves of jobs as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.errors import BadInput, NotFinished
from orchestrator.settings import load_settings

_SUFFIXES = (".png", ".svg", ".pdf")


def register(app: typer.Typer) -> None:
    app.command("plot")(plot)


def plot(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB…", help="Job ids or groups (g12).")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Picture to write: .png, .svg or .pdf.")
    ] = Path("ptq-plot.png"),
) -> None:
    """Draw the training loss and the validation metrics of jobs into a picture."""
    from orchestrator.cli.curves import curve_of, draw
    from orchestrator.registry.engine import Registry
    from orchestrator.registry.jobs import resolve

    if output.suffix.lower() not in _SUFFIXES:
        raise BadInput(
            "not a picture's suffix", where=str(output), hint=f"name a file that ends in {', '.join(_SUFFIXES)}"
        )
    registry = Registry.open(load_settings())
    with registry.read() as connection:
        ids = resolve(connection, jobs)
    curves = [curve for curve in (curve_of(registry, job_id) for job_id in ids) if curve.train]
    if not curves:
        raise NotFinished("none of these jobs has reported a step yet", hint="see `ptq status`")
    draw(curves, output)
    typer.echo(str(output))
