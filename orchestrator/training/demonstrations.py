"""Worked examples before every input (prompt-design): training rows that the seed draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from orchestrator.recipe.methods import PromptDesign
from orchestrator.recipe.schema import JobRecipe
from orchestrator.recipe.tasks import Classify
from orchestrator.tasks.template import parse
from orchestrator.training.objectives.objective import Fields, Objective
from orchestrator.training.objectives.repeated import origin_of, original
from orchestrator.training.order import permutation
from orchestrator.training.texts import TextEncoder


def demonstrations(recipe: JobRecipe, rows: Sequence[Fields]) -> list[Fields]:
    """The method's `shots` rows in the order in which they stand; of class labels equally many, as far as there are."""
    if not isinstance(recipe.method, PromptDesign) or not recipe.method.shots or not rows:
        return []
    shuffled = [int(number) for number in permutation(recipe.seed, 0, len(rows))]
    if isinstance(recipe.task, Classify) and recipe.task.labels:
        shuffled = list(_label_by_label(shuffled, rows, recipe.task))
    # A row with several right answers is there once for each; it is shown with the first.
    once = dict.fromkeys(origin_of(rows, number) for number in shuffled)
    return [original(rows)[number] for number in islice(once, recipe.method.shots)]


def show(encoder: TextEncoder, recipe: JobRecipe, objective: Objective, rows: Sequence[Fields]) -> None:
    """Put them before every input."""
    if isinstance(recipe.method, PromptDesign):
        encoder.show(objective.shown(rows), recipe.method.separator)


def _label_by_label(shuffled: Sequence[int], rows: Sequence[Fields], task: Classify) -> Iterator[int]:
    """The same numbers, one of each label in turn."""
    template = parse(task.label)
    queues: dict[str, list[int]] = {label: [] for label in task.labels}
    for number in reversed(shuffled):
        queues.setdefault(template.render_text(rows[number]).strip(), []).append(number)
    while any(queues.values()):
        yield from [queue.pop() for queue in queues.values() if queue]
