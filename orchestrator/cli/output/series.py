"""The curves of a job: its series of numbers, read from the registry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """Mean over the last `width` values (fewer at the start)."""
    total, means = 0.0, []
    for i, value in enumerate(values):
        total += value - (values[i - width] if i >= width else 0.0)
        means.append(total / min(i + 1, width))
    return means


def _drawable(points: list[tuple[int, float | None]]) -> Series:
    return [(step, value) for step, value in points if value is not None]
