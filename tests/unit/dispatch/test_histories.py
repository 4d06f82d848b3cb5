"""Random histories of the queue; `make proof-histories` runs ten thousand of them."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from machine import History


def test_a_queue_keeps_its_word_whatever_happens() -> None:
    how = settings(
        max_examples=120, stateful_step_count=15, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(History, settings=how)
