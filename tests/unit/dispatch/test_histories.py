"""Random histories of the queue; `make proof-histories` runs ten thousand of them."""

from __future__ import annotations

import time
from typing import ClassVar

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import invariant, run_state_machine_as_test
from machine import History

MOST, BATCH = 300, 15
SECONDS = 5.0  #: after which no further batch is begun: a few hundred histories where nobody else computes


class Looked(History):
    """Its rules and invariants assert; this counts that they had something to look at."""

    jobs: ClassVar[list[int]] = []

    @invariant()  # an override is none by itself
    def the_queue_keeps_its_word(self) -> None:
        super().the_queue_keeps_its_word()
        self.jobs.append(sum(job.attempt > 0 for job in self._jobs()))


def test_a_queue_keeps_its_word_whatever_happens() -> None:
    how = settings(
        max_examples=BATCH, stateful_step_count=15, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    began = time.monotonic()
    for number in range(MOST // BATCH):
        run_state_machine_as_test(seed(number)(Looked), settings=how)
        if time.monotonic() - began > SECONDS:
            break
    assert len(Looked.jobs) > BATCH  # looked at after every move,
    assert sum(Looked.jobs) > BATCH  # and at jobs that had been started
