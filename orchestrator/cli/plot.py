"""`ptq plot`: loss curves of jobs in the terminal or as a picture."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.errors import BadInput, NotFinished
from orchestrator.settings import load_settings

if TYPE_CHECKING:
    from orchestrator.cli.output.series import Curve

_SUFFIXES = (".png", ".svg", ".pdf")


def register(app: typer.Typer) -> None:
    app.command("plot")(plot)


def plot(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB…", help="Job ids or groups (g12).")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Picture to write: .png, .svg or .pdf; default: here."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="NAME", help="Here: this metric of the validation rows.")
    ] = None,
) -> None:
    """Draw the training loss and the validation metrics of jobs, here in the terminal or into a picture."""
    from orchestrator.registry.jobs import resolve
    from orchestrator.registry.storage.engine import Registry

    if output is not None:
        refuse_suffix(output)
    registry = Registry.open(load_settings())
    with registry.read() as connection:
        ids = resolve(connection, jobs)
    from orchestrator.cli.output.series import curve_of

    curves = [curve for curve in (curve_of(registry, job_id) for job_id in ids) if curve.train]
    if not curves:
        raise NotFinished("none of these jobs has reported a step yet", hint="see `ptq status`")
    if output is None:
        _in_terminal(curves, metric)
        return
    from orchestrator.cli.output.curves import draw

    draw(curves, output)
    typer.echo(str(output))


def refuse_suffix(output: Path) -> None:
    if output.suffix.lower() not in _SUFFIXES:
        raise BadInput(
            "not a picture's suffix", where=str(output), hint=f"name a file that ends in {', '.join(_SUFFIXES)}"
        )


def _in_terminal(curves: list[Curve], metric: str | None) -> None:
    from orchestrator.cli.output.series import smoothed
    from orchestrator.cli.output.terminal_plot import lines

    if metric is None:
        title = "training loss"
        drawn = {
            curve.label: list(zip([s for s, _ in curve.train], smoothed([v for _, v in curve.train]), strict=True))
            for curve in curves
        }
    else:
        title = f"validation {metric}"
        drawn = {curve.label: curve.validation[metric] for curve in curves if curve.validation.get(metric)}
        if not drawn:
            known = ", ".join(sorted({name for curve in curves for name in curve.validation})) or "none"
            raise BadInput(
                f"none of these jobs has the metric {metric!r}", where="--metric", hint=f"they have: {known}"
            )
    width, height = shutil.get_terminal_size((80, 24))
    for line in lines(title, drawn, width=min(width, 120), height=max(8, min(height - 6, 20))):
        typer.echo(line)
