"""The simulated box keeps its books, and on it the scheduler is fairer than first come first served."""

from __future__ import annotations

import statistics

import pytest

from orchestrator.settings import Policy
from tests.benchmarks.box_simulation import DAY, HOUR, RESTART, Box, Job, month
from tests.benchmarks.fairness import POLICIES

DAYS = 3.0


def test_the_books_balance() -> None:
    """Two jobs take turns on one card: by hand, each second of it is known."""
    jobs = [Job(1, "ada", 1, 3 * HOUR, 0.0), Job(2, "bob", 1, HOUR, 600.0)]
    result = Box(1, Policy()).run(jobs, DAY)
    ada, bob = jobs
    assert (bob.waited, bob.ended_at) == (HOUR - 600, 2 * HOUR)  # ada's turn is over after an hour
    assert (ada.turns, ada.waited, ada.ended_at) == (1, HOUR, 4 * HOUR + RESTART)
    assert result.busy == pytest.approx(4 * HOUR + RESTART)
    assert result.utilisation == pytest.approx(4 * HOUR / DAY)


def test_who_uses_little_waits_less_and_the_box_is_as_busy() -> None:
    results = {
        name: Box(8, *POLICIES[name]).run(month(1, DAYS), DAYS * DAY) for name in ("first come first served", "ptq")
    }
    fifo, ours = results["first come first served"], results["ptq"]
    for user in ("light", "short"):
        waits = [statistics.fmean(one.waits(lambda job, user=user: job.user == user)) for one in (ours, fifo)]  # type: ignore[misc]
        assert waits[0] < waits[1] / 2
    assert ours.utilisation > 0.97 * fifo.utilisation
