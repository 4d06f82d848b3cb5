"""The curves of a job: its series of numbers, read from the registry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from orchestrator.registry import jobs as job_table
from orchestrator.registry import metrics
from orchestrator.registry.storage.engine import Registry

Series = list[tuple[int, float]]

_SMOOTHING = 25  # steps of the running mean that is drawn over the raw curve


@dataclass(frozen=True)
class Curve:
    label: str
    train: Series
    validation: dict[str, Series]  #: metric -> series


def curve_of(registry: Registry, job_id: int) -> Curve:
    """The curves of one job."""
    with registry.read() as connection:
        job = job_table.get_job(connection, job_id)
        series = {
            (split, name): _drawable(metrics.series(connection, job_id, split, name))
            for split, name in metrics.names(connection, job_id)
        }
    validation = {name: points for (split, name), points in series.items() if split == "validation"}
    return Curve(f"{job.name} (job {job.id})", series.get(("train", "loss"), []), validation)


def smoothed(values: Sequence[float], width: int = _SMOOTHING) -> list[float]:
    """Running mean of as many values before as behind, fewer at both ends: it does not lag."""
    sums = list(accumulate(values, initial=0.0))
    halves = (min(i, len(values) - 1 - i, width // 2) for i in range(len(values)))
    return [(sums[i + half + 1] - sums[i - half]) / (2 * half + 1) for i, half in enumerate(halves)]


def _drawable(points: list[tuple[int, float | None]]) -> Series:
    return [(step, value) for step, value in points if value is not None]
