"""The closed list of labels that the classifying objectives share."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.errors import BadData
from orchestrator.recipe.tasks import Classify
from orchestrator.training.objectives.objective import Fields
from orchestrator.training.texts import TextEncoder


class Classes:
    """Labels in the recipe's order; a row's label by number."""

    def __init__(self, task: Classify, encoder: TextEncoder) -> None:
        self.names = list(task.labels)
        self._template = task.label
        self._encoder = encoder
        self._number = {name: number for number, name in enumerate(self.names)}

    def name_of(self, fields: Fields) -> str:
        name = self._encoder.plain(self._template, fields).strip()
        if name not in self._number:
            raise BadData(
                f"a row has the label {name!r}, which is not among the recipe's labels ({', '.join(self.names)})",
                hint="add it under task.labels, or mend the dataset",
            )
        return name

    def number_of(self, fields: Fields) -> int:
        return self._number[self.name_of(fields)]

    def references(self, rows: Sequence[Fields]) -> tuple[list[int], list[list[str]]]:
        return list(range(len(rows))), [[self.name_of(fields)] for fields in rows]
