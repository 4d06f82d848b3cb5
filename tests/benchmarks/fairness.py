"""A month on a shared box of eight GPUs: ptq's scheduler against first come first served and against plain priority.

make proof-fairness          (three minutes on two quiet cores)
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from orchestrator.registry.queue import Waiting
from orchestrator.settings import Policy
from tests.benchmarks.box_simulation import DAY, HOUR, Box, Job, Result, month
from tests.benchmarks.report import REPOSITORY, write_page

SEEDS = (1, 2, 3)
DAYS = 30.0
GPUS = 8
PICTURE = REPOSITORY / "docs" / "pictures" / "fairness.png"
NEVER = 1e18


def fifo(_: Job, seen: Waiting) -> Waiting:
    """In the order of arrival: one user, one class, no limits to fill gaps by."""
    return replace(seen, user="", priority=50, time_limit=None)


def priority(_: Job, seen: Waiting) -> Waiting:
    """Class first, then arrival."""
    return replace(seen, user="", time_limit=None)


#: name -> (settings, what the scheduler is told of a job)
POLICIES: dict[str, tuple[Policy, Callable[[Job, Waiting], Waiting]]] = {
    "first come first served": (Policy(turn=None, ageing=NEVER), fifo),
    "plain priority": (Policy(turn=None, ageing=NEVER), priority),
    "ptq, no turns": (Policy(turn=None), lambda _, seen: seen),
    "ptq": (Policy(), lambda _, seen: seen),
}
USERS = ("heavy", "light", "gang", "short")
SIZES: dict[str, Callable[[Job], bool]] = {
    "1 GPU, below 20 min": lambda job: job.gpus == 1 and job.length < 20 * 60,
    "1 GPU, longer": lambda job: job.gpus == 1 and job.length >= 20 * 60,
    "4 GPUs": lambda job: job.gpus == 4,
    "8 GPUs": lambda job: job.gpus == 8,
}
Runs = dict[str, list[Result]]


def simulate(days: float = DAYS, seeds: Sequence[int] = SEEDS, *, at_once: int = 1) -> Runs:
    """`at_once`: in so many processes."""
    wanted = [(name, seed, days) for name in POLICIES for seed in seeds]
    if at_once == 1:
        results = [one_month(one) for one in wanted]
    else:
        with ProcessPoolExecutor(at_once) as pool:
            results = list(pool.map(one_month, wanted))
    return {
        name: [result for (other, *_), result in zip(wanted, results, strict=True) if other == name]
        for name in POLICIES
    }


def one_month(wanted: tuple[str, int, float]) -> Result:
    name, seed, days = wanted
    policy, blind = POLICIES[name]
    return Box(GPUS, policy, blind).run(month(seed, days), days * DAY)


def mean_hours(results: Sequence[Result], which: Callable[[Job], bool]) -> float:
    return statistics.fmean(wait for result in results for wait in result.waits(which)) / HOUR


def longest_hours(results: Sequence[Result]) -> float:
    return max(wait for result in results for wait in result.waits(lambda _: True)) / HOUR


def of(user: str) -> Callable[[Job], bool]:
    return lambda job: job.user == user


def means(results: Sequence[Result]) -> dict[str, float]:
    """Hours in line, by user and by size."""
    by_user = {user: mean_hours(results, of(user)) for user in USERS}
    return by_user | {size: mean_hours(results, one) for size, one in SIZES.items()}


def row(name: str, results: Sequence[Result]) -> list[str]:
    turns = statistics.fmean(sum(job.turns for job in result.jobs) for result in results)
    return [
        name,
        f"{100 * statistics.fmean(result.utilisation for result in results):.1f}%",
        *(f"{hours:.2f}" for hours in means(results).values()),
        f"{longest_hours(results):.0f}",
        f"{turns:.0f}",
    ]


def draw(found: dict[str, dict[str, float]], path: Path) -> None:
    """`found`: scheduler -> user or size -> mean hours."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    colours = ("#bbbbbb", "#888888", "#7fb3d5", "#1f618d")
    for axes, labels, title in ((left, USERS, "by user"), (right, tuple(SIZES), "by size")):
        for place, (name, hours) in enumerate(found.items()):
            at = [group + (place - 1.5) * 0.2 for group in range(len(labels))]
            axes.bar(at, [max(hours[label], 1 / 60) for label in labels], 0.2, label=name, color=colours[place])
        axes.set_xticks(range(len(labels)), [label.replace(", ", ",\n") for label in labels], fontsize=9)
        axes.set_title(title, fontsize=10)
        axes.set_yscale("log")
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("mean wait, hours (log)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> int:
    began = time.monotonic()
    runs = simulate(at_once=os.cpu_count() or 1)
    took = time.monotonic() - began
    draw({name: means(results) for name, results in runs.items()}, PICTURE)
    count = statistics.fmean(len(result.jobs) for result in runs["ptq"])
    months = len(POLICIES) * len(SEEDS)
    text = (
        f"A simulated month of four people on {GPUS} GPUs, {count:.0f} jobs, mean of {len(SEEDS)} months; "
        f"{months} months in {took:.0f} s on {os.cpu_count()} cores. "
        "The scheduler is the function that the worker calls; the two simple ones are the same function, told nothing "
        "of users, limits or (first come first served) classes. Who submits what: "
        "`month` in `tests/benchmarks/box_simulation.py`. Waits are mean hours in line, over all turns of a job; a run "
        "that makes room pays a minute to load its base again, which is not counted as use.\n\n"
        "![mean waits by user and by size](../pictures/fairness.png)"
    )
    columns = ["scheduler", "use", *USERS, *SIZES, "longest wait", "turns given"]
    write_page("fairness", "Fairness", "make proof-fairness", text, columns, [row(*one) for one in runs.items()])
    ours, first, plain = (runs[name] for name in ("ptq", "first come first served", "plain priority"))
    fair = all(
        mean_hours(ours, of(user)) < mean_hours(other, of(user))
        for user in ("light", "short")
        for other in (first, plain)
    )
    return 0 if fair else 1


if __name__ == "__main__":
    sys.exit(main())
