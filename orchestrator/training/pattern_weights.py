"""How much each of PET's patterns says (Schick & Schütze 2021, §3.3; timoschick/pet, `merge_logits` and its wmean).

With `weights: accuracy` as much as it is right on the labelled training rows before anything is trained. That is
measured once, on the base as it is; checkpoints and the artifact keep it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import starmap
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from orchestrator.recipe.methods import Pet
from orchestrator.recipe.schema import JobRecipe
from orchestrator.recipe.tasks import Classify
from orchestrator.tasks.answers import NOT_IT
from orchestrator.training.distributed import Processes
from orchestrator.training.evaluate import evaluate
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
        kept: Mapping[str, Tensor],
    ) -> Patterns:
        """Measured now, unless a checkpoint has `kept` what was measured (`state`)."""
        method, task = recipe.method, recipe.task
        if not isinstance(method, Pet) or method.weights != "accuracy" or not isinstance(task, Classify):
            return cls()
        inputs = [task.input, *method.patterns]
        if kept:
            return cls(inputs, kept["accuracy"].tolist())
        plain = recipe.model_copy(update={"method": method.model_copy(update={"patterns": []})})
        each = [plain.model_copy(update={"task": task.model_copy(update={"input": text})}) for text in inputs]
        return cls(inputs, _accuracies(each, host, encoder, by_label(task, rows)[0], processes))

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


def _accuracies(
    recipes: Sequence[JobRecipe], host: BaseHost, encoder: TextEncoder, rows: Sequence[Fields], processes: Processes
) -> list[float]:
    """What each recipe's one pattern has right. No rank waits for another but for a sharded base: each does it all."""
    asked = [Asked(build_objective(one, encoder), Prompt.empty(), None, rows) for one in recipes]
    alone = processes if processes.sharded else replace(processes, rank=0, world=1)
    found = evaluate(host, asked, batch_sizes=[recipes[0].train.eval_batch_size] * len(asked), processes=alone)
    labels = bool(getattr(recipes[0].task, "labels", None))
    return [fmean(starmap(partial(_right, labels), zip(one.predictions, one.references, strict=True))) for one in found]


def _right(labels: bool, said: str, wanted: Sequence[str]) -> bool:
    """One label is right (behind it may stand the row's group); of candidates all that the references name."""
    return (said in (wanted[:1] if labels else wanted)) != (NOT_IT in wanted)
