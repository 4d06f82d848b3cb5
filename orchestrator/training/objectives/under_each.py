"""Rows once for each of several patterns (PET)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from orchestrator.training.objectives.each_answer import EachAnswer
from orchestrator.training.objectives.objective import Fields

_PATTERN = "\0pattern"  # no column of a dataset can be called so


@dataclass(frozen=True)
class UnderEach(Sequence[Fields]):
    """Each row once for each pattern, and its pattern's number in it."""

    rows: Sequence[Fields]
    patterns: int

    def __len__(self) -> int:
        return len(self.rows) * self.patterns

    @overload
    def __getitem__(self, index: int) -> Fields: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Fields]: ...

    def __getitem__(self, index: int | slice) -> Fields | Sequence[Fields]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        row, pattern = divmod(index, self.patterns)
        return {**self.rows[row], _PATTERN: str(pattern)}

    def origin(self, number: int) -> int:
        """The row's number among `rows`."""
        return number // self.patterns


def pattern_of(fields: Fields) -> int:
    """The number of the row's pattern."""
    return int(fields.get(_PATTERN, "0"))


def origin_of(rows: Sequence[Fields], number: int) -> int:
    """The number of a row among those that it was repeated from."""
    while isinstance(rows, UnderEach | EachAnswer):
        number, rows = rows.origin(number), rows.rows
    return number


def original(rows: Sequence[Fields]) -> Sequence[Fields]:
    """The rows that these were repeated from."""
    while isinstance(rows, UnderEach | EachAnswer):
        rows = rows.rows
    return rows
