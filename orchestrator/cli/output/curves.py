"""Loss curves of jobs, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib import pyplot

from orchestrator.cli.output.series import Curve, smoothed

# Okabe & Ito's palette: told apart by people with colour-blindness and in grey print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def draw(curves: Sequence[Curve], output: Path) -> None:
    """Write the picture: training loss on the left, a panel for each validation metric that has more than one point."""
    matplotlib.use("Agg")
    names = sorted({name for curve in curves for name, series in curve.validation.items() if len(series) > 1})
    width = 7 + 5 * len(names)
    figure, panels = pyplot.subplots(1, 1 + len(names), figsize=(width, 4.5), squeeze=False, layout="constrained")
    loss, others = panels[0][0], panels[0][1:]
    for number, curve in enumerate(curves):
        look = {"color": _COLOURS[number % len(_COLOURS)]}
        steps, values = [step for step, _ in curve.train], [value for _, value in curve.train]
        loss.plot(steps, values, alpha=0.25, linewidth=0.8, **look)
        loss.plot(steps, smoothed(values), linewidth=1.8, label=curve.label, **look)
        for name, panel in zip(names, others, strict=True):
            series = curve.validation.get(name, [])
            panel.plot(
                [s for s, _ in series], [v for _, v in series], marker="o", markersize=4, label=curve.label, **look
            )
    for title, panel in zip(["training loss", *(f"validation {name}" for name in names)], panels[0], strict=True):
        panel.set_title(title, loc="left", fontsize=11)
        panel.set_xlabel("step")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=9)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
    pyplot.close(figure)
