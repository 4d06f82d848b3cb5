"""Random histories of the queue; `make proof-histories` runs ten thousand of them."""

from __future__ import annotations

import time

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from machine import History

MOST, BATCH = 300, 15
SECONDS = 5.0  #: after which no further batch is begun: a few hundred histories where nobody else computes


def test_a_queue_keeps_its_word_whatever_happens() -> None:
    how = settings(
        max_examples=BATCH, stateful_step_count=15, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    began = time.monotonic()
    for number in range(MOST // BATCH):
        run_state_machine_as_test(seed(number)(History), settings=how)
        if time.monotonic() - began > SECONDS:
            break
