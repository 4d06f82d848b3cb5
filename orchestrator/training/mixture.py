"""A mixture of tasks: which rows a step trains on, drawn by seed and step alone."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from orchestrator.recipe.schema import Mixture
from orchestrator.tasks.template import parse
from orchestrator.training.objectives.objective import Fields
from orchestrator.training.order import mixed_seed

_LONGEST = 40  #: the registry keeps 60 characters of a score's name


class MixedTasks:
    """The rows of each task, and how often it is drawn."""

    def __init__(self, mixture: Mixture, rows: Sequence[Fields]) -> None:
        template = parse(mixture.by)
        self.tasks: dict[str, list[int]] = {}
        for number, fields in enumerate(rows):
            self.tasks.setdefault(template.render_text(fields).strip(), []).append(number)
        sizes = [min(len(numbers), mixture.cap or len(numbers)) for numbers in self.tasks.values()]
        self._weights = sizes if mixture.sampling == "proportional" else [1] * len(sizes)

    def rows(self, step: int, *, seed: int, batch_size: int) -> list[int]:
        """Numbers of the rows of step `step` (from 0): each a task by its rate, and any of its rows."""
        draw = random.Random(mixed_seed(seed, 5, step))
        chosen = draw.choices(list(self.tasks.values()), self._weights, k=batch_size)
        return [draw.choice(numbers) for numbers in chosen]


def task_name(mixture: Mixture, fields: Fields) -> str:
    """A row's task as a part of a score's name, which filters can write: letters, digits, underscores and dashes."""
    return re.sub(r"[^\w-]+", "-", parse(mixture.by).render_text(fields).strip())[:_LONGEST] or "-"
