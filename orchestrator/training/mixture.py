"""A mixture of tasks: which rows a step trains on, drawn by seed and step alone."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, zip_longest

from orchestrator.errors import BadRecipe
from orchestrator.recipe.schema import Mixture
from orchestrator.tasks.template import parse
from orchestrator.training.objectives.objective import Fields
from orchestrator.training.order import mixed_seed

_LONGEST = 40  #: the registry keeps 60 characters of a score's name


class MixedTasks:
    """The rows of each task, and how often it is drawn."""

    def __init__(self, mixture: Mixture, rows: Sequence[Fields]) -> None:
        self.tasks = places(tasks_of(mixture.by, rows))
        refuse_unknown_tasks(mixture, self.tasks)
        sizes = [min(len(numbers), mixture.cap or len(numbers)) for numbers in self.tasks.values()]
        self._weights = sizes if mixture.sampling == "proportional" else [1] * len(sizes)

    def rows(self, step: int, *, seed: int, batch_size: int) -> list[int]:
        """Numbers of the rows of step `step` (from 0): each a task by its rate, and any of its rows."""
        draw = random.Random(mixed_seed(seed, 5, step))
        chosen = draw.choices(list(self.tasks.values()), self._weights, k=batch_size)
        return [draw.choice(numbers) for numbers in chosen]


def tasks_of(by: str, rows: Iterable[Fields]) -> Iterator[str]:
    """Each row's task."""
    template = parse(by)
    return (template.render_text(fields).strip() for fields in rows)


def places(names: Iterable[str]) -> dict[str, list[int]]:
    """name -> where it stands, in order."""
    found: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        found.setdefault(name, []).append(number)
    return found


def first_of_each(tasks: Iterable[str], most: int) -> list[int]:
    """Of rows of these tasks the numbers of `most`, as many of each while it has any: a split may be sorted by task."""
    each = places(tasks).values()
    turns = (number for turn in zip_longest(*each) for number in turn if number is not None)
    return sorted(islice(turns, most))


def refuse_unknown_tasks(mixture: Mixture, tasks: Iterable[str]) -> None:
    """BadRecipe where scores are named for a task that the rows do not have."""
    there = sorted(set(tasks))
    for name in mixture.tasks:
        if name not in there:
            hint = f"the tasks of the training rows: {', '.join(there[:20])}"
            raise BadRecipe(f"`{name}` is no task of the dataset", where="train.mixture.tasks", hint=hint)


def task_names(tasks: Iterable[str]) -> dict[str, str]:
    """task -> a part of a score's name, which filters can write: letters, digits, underscores and dashes. Tasks that
    come out alike so have a piece of their hash behind it."""
    short = {task: re.sub(r"[^\w-]+", "-", task)[:_LONGEST] or "-" for task in set(tasks)}
    often = Counter(short.values())
    return {
        task: name if often[name] == 1 else f"{name[: _LONGEST - 7]}-{hashlib.sha256(task.encode()).hexdigest()[:6]}"
        for task, name in short.items()
    }
