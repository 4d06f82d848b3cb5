"""Which rows a step trains on: a pure function of seed, step and batch size, so a position is one number.

Every epoch is a new permutation of all rows; batches run over the end of an epoch into the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache

import torch

from orchestrator.recipe.schema import Train


def total_steps(train: Train, rows: int) -> int:
    if train.steps is not None:
        return train.steps
    assert train.epochs is not None
    # As it is written: 1.1 epochs of 100 rows are 110 rows, not the 110.00000000000001 of binary fractions.
    return max(1, math.ceil(Fraction(repr(train.epochs)) * rows / train.batch_size))


def batch_rows(step: int, *, seed: int, rows: int, batch_size: int) -> list[int]:
    """Numbers of the rows of step `step` (from 0)."""
    return Passes(seed, rows).batch(step, batch_size)


class Passes:
    """A job's passes over its rows. It keeps the orders of two, 8 bytes a row each: a batch may run over an end.

    Each job its own: orders that all jobs of a run kept together were drawn again at every step of a large run.
    """

    def __init__(self, seed: int, rows: int) -> None:
        self._rows = rows
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(seed, epoch, rows))

    def batch(self, step: int, batch_size: int) -> list[int]:
        """See `batch_rows`."""
        at, end = step * batch_size, (step + 1) * batch_size
        numbers: list[int] = []
        while at < end:
            epoch, first = divmod(at, self._rows)
            taken = min(self._rows - first, end - at)
            numbers += self._order(epoch)[first : first + taken].tolist()
            at += taken
        return numbers


def mixed_seed(seed: int, *numbers: int) -> int:
    """A seed for one use of randomness (an epoch's order, a step's dropout), unrelated to its neighbours'.

    The multiplier and the finaliser are splitmix64's (Steele et al. 2014).
    """
    value = seed
    for number in numbers:
        value = (value * 0x9E3779B97F4A7C15 + number + 1) & (2**64 - 1)
        value ^= value >> 30
        value = (value * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        value ^= value >> 27
    return value & (2**63 - 1)


def permutation(seed: int, epoch: int, rows: int) -> torch.Tensor:
    """[rows]: the order of an epoch."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, 1, epoch))
    return torch.randperm(rows, generator=generator)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's random numbers from `seed` inside, as they were outside.

    Through the generators themselves: `torch.manual_seed` also notes a stack trace for a GPU not yet in use, which
    took a quarter of a small job's step.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    before = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)
