"""The next step's rows, made while this step's backward runs.

Reading, tokenising and laying out rows is Python's work; a backward is torch's, which does not need Python meanwhile.
Whatever was made for a step that never comes so (a job has left, or joined) is let go of, and made again where it is
needed: order and results are the same with and without. What goes wrong here goes wrong again there, in its own place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from orchestrator.training.job import TrainedJob
from orchestrator.training.objectives import Example
from orchestrator.tuning.layout import Layout
from orchestrator.tuning.rows import RowBatch

#: Of each job in a forward: which one, its step, and the places of its rows in its batch.
Key = tuple[tuple[int, int, tuple[int, ...]], ...]


class Laid(NamedTuple):
    """The rows of one forward."""

    batch: RowBatch
    layout: Layout | None


@dataclass(frozen=True)
class Made:
    """What was made for the steps to come."""

    jobs: Sequence[TrainedJob] = ()  #: held here, so that a number in a key is no other job's
    examples: dict[tuple[int, int], list[Example]] = field(default_factory=dict)  #: by job and step
    laid: dict[Key, Laid] = field(default_factory=dict)


class Ahead:
    """One thread that works while a backward does, and at no other time."""

    def __init__(self, *, on: bool = True) -> None:
        self._pool = ThreadPoolExecutor(1, "rows") if on else None
        self._made = Made()
        self._making: Future[Made] | None = None

    def begin(self, make: Callable[[], Made]) -> None:
        """Call it before a backward; again within the same step it does nothing."""
        if self._pool is not None and self._making is None:
            self._making = self._pool.submit(make)

    def finish(self) -> None:
        """At the end of a step: from here on nothing runs beside the caller."""
        if self._making is None:
            return
        making, self._making = self._making, None
        error = making.exception()
        self._made = Made() if error is not None else making.result()

    def forget(self) -> None:
        """Let go of what was made, and of its jobs."""
        self._made = Made()

    def close(self) -> None:
        self.finish()
        if self._pool is not None:
            self._pool.shutdown()

    def batch(self, job: TrainedJob) -> list[Example]:
        """The examples of the job's step to come."""
        made = self._made.examples.get((id(job), job.step))
        return job.batch() if made is None else made

    def laid(self, key: Key) -> Laid | None:
        return self._made.laid.get(key)
