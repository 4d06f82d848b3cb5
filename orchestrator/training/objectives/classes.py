"""What the classifying objectives choose from: a closed list of labels, or what the row itself brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.errors import BadData, BadRecipe
from orchestrator.recipe.tasks import Classify, choices_of, own_choices
from orchestrator.tasks.answers import NOT_IT
from orchestrator.tasks.usable import probabilities
from orchestrator.training.objectives.each_answer import answer_of, each_answer
from orchestrator.training.objectives.objective import Fields
from orchestrator.training.texts import TextEncoder


class Classes:
    """Labels in the recipe's order, or a row's candidates in theirs; what is right by number."""

    def __init__(self, task: Classify, encoder: TextEncoder) -> None:
        self.names = list(task.labels)  #: none where the rows bring candidates
        self.own = own_choices(task)  #: whether words differ by row
        self._labels, self._choices = task.labels, choices_of(task)
        self._template, self._group, self._holds = task.label, task.group, task.holds
        self._encoder = encoder
        self._number = {name: number for number, name in enumerate(self.names)}

    def offered(self, fields: Fields) -> Mapping[str, Sequence[str]]:
        """Name -> its words."""
        return self._choices.offered(fields) if self.own else self._labels

    def right(self, fields: Fields, offered: Mapping[str, Sequence[str]]) -> list[str]:
        """What is right of a row's offer, first what this row is trained on: one label, or one candidate or more."""
        if self.names:
            return [self.name_of(fields)]
        found = self._choices.right(fields, list(offered))
        number = answer_of(fields)
        return [found[number], *found[:number], *found[number + 1 :]]

    def usable(self, rows: Sequence[Fields]) -> Sequence[Fields]:
        """A row with several right candidates once for each, as PET and T5 train on ReCoRD."""
        return rows if self.names else each_answer(rows, self._choices)

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
        return probabilities(self._encoder.plain(template, fields), self.names, temperature)

    def references(self, rows: Sequence[Fields]) -> tuple[list[int], list[list[str]]]:
        """Each row's label and, where the task groups rows, its group (`tasks.metrics.group_exact_match`); of
        candidates all that are right, or with `NOT_IT` behind it one that is not."""
        found = [self._judged(fields) for fields in rows]
        if self._group is not None:
            found = [[*row, self._encoder.plain(self._group, f)] for row, f in zip(found, rows, strict=True)]
        return list(range(len(rows))), found

    def _judged(self, fields: Fields) -> list[str]:
        if self.names:
            return [self.name_of(fields)]
        right = self._choices.right(fields, list(self._choices.offered(fields)))
        return right if self._choices.holds(fields) else [*right, NOT_IT]


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


def refuse_silent(offered: Mapping[str, Sequence[str]], tokens: Sequence[Sequence[list[int]]]) -> None:
    """BadData where one of a row's own words is no token to the base."""
    for words, theirs in zip(offered.values(), tokens, strict=True):
        for word, ids in zip(words, theirs, strict=True):
            if not ids:
                raise BadData(f"the base's tokenizer finds no token in {word!r}, which a row can be answered with")
