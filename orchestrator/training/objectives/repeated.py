"""Rows as they are trained on, where that is not once each in their order: a view that knows where each came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

from orchestrator.training.objectives.objective import Fields


@dataclass(frozen=True)
class Repeated(Sequence[Fields]):
    rows: Sequence[Fields]
    length: int
    place: Callable[[int], tuple[int, int]]  #: number -> (row, which of its repetitions)
    mark: str  #: the field that says which, where it is not the first; no column of a dataset can be called so

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Fields: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Fields]: ...

    def __getitem__(self, index: int | slice) -> Fields | Sequence[Fields]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(self.length))]
        row, which = self.place(index)
        return {**self.rows[row], self.mark: str(which)} if which else self.rows[row]


def origin_of(rows: Sequence[Fields], number: int) -> int:
    """The number of a row among those that it was repeated from."""
    while isinstance(rows, Repeated):
        number, rows = rows.place(number)[0], rows.rows
    return number


def original(rows: Sequence[Fields]) -> Sequence[Fields]:
    """The rows that these were repeated from."""
    while isinstance(rows, Repeated):
        rows = rows.rows
    return rows
