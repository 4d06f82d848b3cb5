"""`--split 0.9/0.1 --seed 7`: which row goes where, from the number of rows and the seed alone."""

from __future__ import annotations

import random
from dataclasses import dataclass

from orchestrator.errors import BadData, BadInput

NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class SplitPlan:
    fractions: tuple[float, ...]  #: of train, validation and, when there are three, test
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        return NAMES[: len(self.fractions)]


def parse_split(text: str, seed: int) -> SplitPlan:
    """`0.9/0.1` or `0.8/0.1/0.1`. Raises BadInput."""
    hint = "write e.g. `--split 0.9/0.1` (train/validation) or `--split 0.8/0.1/0.1` (and test)"
    try:
        fractions = tuple(float(part) for part in text.split("/"))
    except ValueError as error:
        raise BadInput(f"{text!r} is not a split", where="--split", hint=hint) from error
    if len(fractions) not in {2, 3} or not all(0 < fraction < 1 for fraction in fractions):
        raise BadInput(f"{text!r}: two or three parts between 0 and 1", where="--split", hint=hint)
    if abs(sum(fractions) - 1) > 1e-6:
        raise BadInput(f"{text!r}: the parts make {sum(fractions):g}, not 1", where="--split", hint=hint)
    return SplitPlan(fractions, seed)


def assign(rows: int, plan: SplitPlan) -> bytearray:
    """For each row the index of its split. Uniformly random by `seed`; the rows keep their order within a split.

    Only `Random.random()` is used: it is the one whose series Python promises to keep between versions.
    """
    generator = random.Random(plan.seed)
    order = sorted(range(rows), key=[generator.random() for _ in range(rows)].__getitem__)
    assigned = bytearray(rows)
    start, total = 0, 0.0
    for index, fraction in enumerate(plan.fractions):
        total += fraction
        end = rows if index == len(plan.fractions) - 1 else round(total * rows)
        if end <= start:
            raise BadData(
                f"{rows} rows are too few for this split: {plan.names[index]} would be empty", where="--split"
            )
        for row in order[start:end]:
            assigned[row] = index
        start = end
    return assigned
