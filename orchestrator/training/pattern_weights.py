"""How much each of PET's patterns says (Schick & Schütze 2021, §3.3; timoschick/pet, `merge_logits` and its wmean).

With `weights: accuracy` as much as it is right on the labelled training rows before anything is trained. That is
measured once, on the base as it is; checkpoints and the artifact keep it, and the job's folder what a stop has left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from orchestrator.paths import JobPaths
from orchestrator.recipe.methods import Pet
from orchestrator.recipe.schema import JobRecipe
from orchestrator.recipe.tasks import Classify
from orchestrator.tasks.answers import NOT_IT
from orchestrator.training.distributed import Processes
from orchestrator.training.evaluate import Between, Evaluation, evaluate
from orchestrator.training.failures import met_by_all
from orchestrator.training.kept import KeptAnswers
from orchestrator.training.objectives import build_objective
from orchestrator.training.objectives.asking import Asked
from orchestrator.training.objectives.hidden_words import by_label
from orchestrator.training.objectives.objective import Fields
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.prompt import Prompt


@dataclass(frozen=True)
class Patterns:
    """A job's patterns and how right each is by itself; none where all count alike."""

    inputs: Sequence[str] = ()
    accuracies: Sequence[float] = ()

    @classmethod
    def open(
        cls,
        recipe: JobRecipe,
        host: BaseHost,
        encoder: TextEncoder,
        rows: Sequence[Fields],
        processes: Processes,
        known: Mapping[str, Tensor],
        kept: Callable[[int], KeptAnswers] | None = None,
        between: Between = lambda: None,
    ) -> Patterns:
        """Measured now, unless it is `known` from a checkpoint (`state`). On all ranks: they share the rows.

        `kept`: the answers under a pattern, by its number; where `between` raises, another try goes on behind them.
        """
        method, task = recipe.method, recipe.task
        if not isinstance(method, Pet) or method.weights != "accuracy" or not isinstance(task, Classify):
            return cls()
        inputs = [task.input, *method.patterns]
        if known:
            return cls(inputs, known["accuracy"].tolist())
        plain = recipe.model_copy(update={"method": method.model_copy(update={"patterns": []})})
        each = [plain.model_copy(update={"task": task.model_copy(update={"input": text})}) for text in inputs]
        with met_by_all(processes):
            labelled = by_label(task, rows)[0]
            asked = [Asked(build_objective(one, encoder), Prompt.empty(), None, labelled) for one in each]
        answers = [] if kept is None else [kept(number) for number in range(len(asked))]
        sizes = [recipe.train.eval_batch_size] * len(asked)
        found = evaluate(host, asked, batch_sizes=sizes, processes=processes, between=between, kept=answers)
        return cls(inputs, [_accuracy(one, labels=bool(getattr(task, "labels", None))) for one in found])

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint; empty where all count alike."""
        return {"accuracy": torch.tensor(self.accuracies, dtype=torch.float64)} if self.accuracies else {}

    @property
    def weights(self) -> list[float]:
        """Together 1, and none where there are none; all alike where no pattern is ever right."""
        total = sum(self.accuracies)
        return [one / total if total else 1 / len(self.accuracies) for one in self.accuracies]

    def facts(self) -> list[dict[str, Any]] | None:
        """For artifact.json."""
        each = zip(self.inputs, self.accuracies, self.weights, strict=True)
        return [{"input": text, "accuracy": right, "weight": weight} for text, right, weight in each] or None


def kept_of_pattern(paths: JobPaths, identity: str, number: int) -> KeptAnswers:
    """Of the base before anything is trained; also what is whole, for the first checkpoint may be long in coming."""
    return KeptAnswers(paths.answers / f"pattern-{number}.json", f"{identity}, pattern {number}, untrained", final=True)


def _accuracy(found: Evaluation, *, labels: bool) -> float:
    return fmean(starmap(partial(_right, labels), zip(found.predictions, found.references, strict=True)))


def _right(labels: bool, said: str, wanted: Sequence[str]) -> bool:
    """One label is right (behind it may stand the row's group); of candidates all that the references name."""
    return (said in (wanted[:1] if labels else wanted)) != (NOT_IT in wanted)
