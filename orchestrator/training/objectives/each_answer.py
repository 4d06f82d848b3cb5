"""Rows once for each of their right answers (ReCoRD: timoschick/pet, tasks.py; T5 writes them out the same way)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from orchestrator.errors import BadData
from orchestrator.tasks.choices import Choices
from orchestrator.training.objectives.objective import Fields

_ANSWER = "\0answer"  # no column of a dataset can be called so


@dataclass(frozen=True)
class EachAnswer(Sequence[Fields]):
    """Each row once for each right answer, whose number is in it; rows without one that holds are left out."""

    rows: Sequence[Fields]
    places: Sequence[tuple[int, int]]  #: (row, answer)

    @classmethod
    def of(cls, rows: Sequence[Fields], choices: Choices) -> EachAnswer:
        """Reads all rows. BadData for one that cannot be used, or where none can."""
        places: list[tuple[int, int]] = []
        for number, fields in enumerate(rows):
            try:
                if choices.holds(fields):
                    right = choices.right(fields, list(choices.offered(fields)))
                    places += [(number, answer) for answer in range(len(right))]
            except BadData as error:
                row = rows.origin(number) if isinstance(rows, EachAnswer) else number
                raise BadData(error.message, where=f"train row {row + 1}", hint=error.hint) from error
        if not places:
            raise BadData("no training row has an answer that holds", where="task.holds")
        return cls(rows, places)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Fields: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Fields]: ...

    def __getitem__(self, index: int | slice) -> Fields | Sequence[Fields]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        row, answer = self.places[index]
        return {**self.rows[row], _ANSWER: str(answer)} if answer else self.rows[row]

    def origin(self, number: int) -> int:
        """The row's number among `rows`."""
        return self.places[number][0]


def answer_of(fields: Fields) -> int:
    """Which of its right answers the row is trained on."""
    return int(fields.get(_ANSWER, "0"))
