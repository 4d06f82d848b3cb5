"""How each row is scored: all alike by the recipe's task, in a mixture by the task that the row belongs to, and told
apart by a field where the recipe asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.recipe.schema import Recipe, TaskScores
from orchestrator.recipe.tasks import Classify, Generate
from orchestrator.tasks.template import Template, parse

AVERAGE = "average"  #: of a mixture whose tasks have scores of their own, 0-100


@dataclass(frozen=True)
class Judged:
    """How the rows of one task are scored."""

    metrics: Sequence[str]
    labels: Sequence[str] = ()  #: all there are; none: any text is an answer
    group: Template | None = None  #: what rows belong together
    own_labels: bool = True  #: false: those of all tasks together


class Judging:
    def __init__(self, recipe: Recipe) -> None:
        task, mixture = recipe.task, recipe.train.mixture
        labels = tuple(task.labels) if isinstance(task, Classify | Generate) else ()
        group = task.group if isinstance(task, Classify | Generate) else None
        self._all = Judged(task.metrics, labels, None if group is None else parse(group))
        self._by = None if mixture is None else parse(mixture.by)
        self._apart = None if recipe.train.scores_by is None else parse(recipe.train.scores_by)
        self._own = {} if mixture is None else {name: _own(self._all, one) for name, one in mixture.tasks.items()}

    @property
    def headline(self) -> str:
        """The score by which evaluations are compared."""
        return AVERAGE if self._own else self._all.metrics[0]

    @property
    def averaged(self) -> bool:
        return bool(self._own)

    def task_of(self, fields: Mapping[str, str]) -> str | None:
        """The row's task; None where there is one."""
        return None if self._by is None else self._by.render_text(fields).strip()

    def part_of(self, fields: Mapping[str, str]) -> str | None:
        """What the row's scores are told apart by; None where they are not."""
        return None if self._apart is None else self._apart.render_text(fields).strip()

    def of(self, task: str | None) -> Judged:
        return self._all if task is None else self._own.get(task, replace(self._all, own_labels=False))

    def of_row(self, fields: Mapping[str, str]) -> Judged:
        return self.of(self.task_of(fields))


def _own(of_all: Judged, task: TaskScores) -> Judged:
    metrics = task.metrics or of_all.metrics
    inherited = of_all.group if "group_exact_match" in metrics else None
    group = inherited if task.group is None else parse(task.group)
    return Judged(metrics, task.labels or of_all.labels, group, bool(task.labels))
