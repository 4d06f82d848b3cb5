"""One file for each way to learn and score a task. Adding one is adding a file and a line in `build_objective`.

An objective turns the text fields of a row into `Example`s, gives the loss of a forward, and predicts text.
"""

from __future__ import annotations

from orchestrator.recipe.schema import JobRecipe
from orchestrator.recipe.tasks import Classify, Generate
from orchestrator.training.objectives.generation import Generation
from orchestrator.training.objectives.head import HeadClassification
from orchestrator.training.objectives.objective import Example, Objective
from orchestrator.training.objectives.scoring import LabelScoring
from orchestrator.training.objectives.verbalizer import VerbalizerClassification
from orchestrator.training.texts import TextEncoder

__all__ = ["Example", "Objective", "build_objective"]


def build_objective(recipe: JobRecipe, encoder: TextEncoder) -> Objective:
    """The objective of a job; `recipe.fit` has refused impossible combinations before."""
    task = recipe.task
    if isinstance(task, Generate):
        return Generation(task, encoder)
    assert isinstance(task, Classify)
    if task.head is not None:
        return HeadClassification(task, encoder)
    if encoder.has_mask(task.input):
        return VerbalizerClassification(task, encoder)
    return LabelScoring(task, encoder)
