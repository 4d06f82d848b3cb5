"""Rows once for each of their right answers (ReCoRD: timoschick/pet, tasks.py; T5 writes them out the same way)."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.errors import BadData
from orchestrator.tasks.choices import Choices
from orchestrator.training.objectives.objective import Fields
from orchestrator.training.objectives.repeated import Repeated, origin_of

_ANSWER = "\0answer"


def each_answer(rows: Sequence[Fields], choices: Choices) -> Sequence[Fields]:
    """Each row once for each right answer, whose number is in it; rows without one that holds are left out.

    Reads all rows. BadData for one that cannot be used, or where none can.
    """
    places: list[tuple[int, int]] = []
    for number, fields in enumerate(rows):
        try:
            if choices.holds(fields):
                right = choices.right(fields, list(choices.offered(fields)))
                places += [(number, answer) for answer in range(len(right))]
        except BadData as error:
            where = f"train row {origin_of(rows, number) + 1}"
            raise BadData(error.message, where=where, hint=error.hint) from error
    if not places:
        raise BadData("no training row has an answer that holds", where="task.holds")
    return Repeated(rows, len(places), places.__getitem__, _ANSWER)


def answer_of(fields: Fields) -> int:
    """Which of its right answers the row is trained on."""
    return int(fields.get(_ANSWER, "0"))
