"""The closed list of labels that the classifying objectives share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from orchestrator.errors import BadData, BadRecipe
from orchestrator.recipe.tasks import Classify
from orchestrator.training.objectives.objective import Fields
from orchestrator.training.texts import TextEncoder


class Classes:
    """Labels in the recipe's order; a row's label by number."""

    def __init__(self, task: Classify, encoder: TextEncoder) -> None:
        self.names = list(task.labels)
        self._template, self._group = task.label, task.group
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

    def shares(self, fields: Fields, template: str, temperature: float) -> tuple[float, ...]:
        """Each label's probability by the JSON in a row, flattened by the temperature: p^(1/T), summing up to 1."""
        text = self._encoder.plain(template, fields)
        try:
            found = {str(label): float(value) for label, value in json.loads(text).items()}
            flat = [found[name] ** (1 / temperature) for name in self.names]
            if not sum(flat) > 0 or min(flat) < 0:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"`{text[:60]}` is not a JSON mapping from each of the labels to its probability"
            raise BadData(what, hint=f"the labels: {', '.join(self.names)}") from error
        return tuple(value / sum(flat) for value in flat)

    def references(self, rows: Sequence[Fields]) -> tuple[list[int], list[list[str]]]:
        """Each row's label and, where the task groups rows, its group (`tasks.metrics.group_exact_match`)."""
        found = [[self.name_of(fields)] for fields in rows]
        if self._group is not None:
            found = [[*row, self._encoder.plain(self._group, f)] for row, f in zip(found, rows, strict=True)]
        return list(range(len(rows))), found


def refuse_alike(labels: Mapping[str, Sequence[str]], tokens: Sequence[Sequence[list[int]]]) -> None:
    """BadRecipe where a base cannot tell two labels' words apart, or a word is no token to it.

    `tokens`: of each label's words, in the labels' order.
    """
    owner: dict[tuple[int, ...], tuple[str, str]] = {}
    for (label, words), theirs in zip(labels.items(), tokens, strict=True):
        for word, ids in zip(words, theirs, strict=True):
            if not ids:
                raise BadRecipe(f"the base's tokenizer finds no token in the label word {word!r}", where="task.labels")
            other, its = owner.setdefault(tuple(ids), (label, word))
            if other != label:
                what = f"{its!r} of {other!r} and {word!r} of {label!r} are the same tokens on this base"
                raise BadRecipe(what, where="task.labels", hint="choose words that the base's vocabulary tells apart")
