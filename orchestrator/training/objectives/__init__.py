"""One file for each way to learn and score a task. Adding one is adding a file and a line in `build_objective`.

An objective turns the text fields of a row into `Example`s, gives the loss of a forward, and predicts text.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.recipe.judging import Judging
from orchestrator.recipe.methods import AutoPrompt, Pet, Warp
from orchestrator.recipe.schema import JobRecipe
from orchestrator.recipe.tasks import (
    Classify,
    Cloze,
    Generate,
    PlainText,
    Span,
    Tag,
    label_words,
    own_choices,
)
from orchestrator.training.objectives.cloze import ClozeWord
from orchestrator.training.objectives.generation import Generation
from orchestrator.training.objectives.head import HeadClassification
from orchestrator.training.objectives.masked_words import MaskedWords
from orchestrator.training.objectives.objective import Example, Objective
from orchestrator.training.objectives.patterns import PatternEnsemble
from orchestrator.training.objectives.running_text import RunningText
from orchestrator.training.objectives.scoring import LabelScoring
from orchestrator.training.objectives.spans import SpanFinding
from orchestrator.training.objectives.tags import Tagging
from orchestrator.training.objectives.vectors import LabelVectors
from orchestrator.training.objectives.verbalizer import VerbalizerClassification
from orchestrator.training.texts import TextEncoder

__all__ = ["Example", "Objective", "build_objective"]


def build_objective(recipe: JobRecipe, encoder: TextEncoder, weights: Sequence[float] = ()) -> Objective:
    """The objective of a job; `recipe.fit` has refused impossible combinations before.

    `weights`: of PET's patterns (`pattern_weights.Patterns`); none: all alike.
    """
    match recipe.task:
        case Generate() as task:
            return Generation(task, encoder, Judging(recipe))
        case Cloze() as task:
            return ClozeWord(task, encoder)
        case Tag() as task:
            return Tagging(task, encoder)
        case Span() as task:
            return SpanFinding(task, encoder)
        case PlainText() as task:
            return RunningText(task, encoder)
        case Classify(head=None) as task:
            return _by_words(recipe, task, encoder, weights)
        case Classify() as task:
            return HeadClassification(task, encoder)


def _by_words(recipe: JobRecipe, task: Classify, encoder: TextEncoder, weights: Sequence[float]) -> Objective:
    if isinstance(recipe.method, Warp):
        return LabelVectors(task, encoder, recipe.method)
    templates = [task.input, *(recipe.method.patterns if isinstance(recipe.method, Pet) else [])]
    weights = weights or [1 / len(templates)] * len(templates)
    masked = encoder.has_mask(task.input)
    several = own_choices(task) or any(encoder.one_token(word) is None for word in label_words(task))
    if masked and several and encoder.kind == "masked":
        return MaskedWords(task, encoder, templates, weights)
    if masked and isinstance(recipe.method, AutoPrompt):
        return VerbalizerClassification(task, encoder, summed=True)
    kind = VerbalizerClassification if masked else LabelScoring
    if len(templates) == 1:
        return kind(task, encoder)
    each = [kind(task.model_copy(update={"input": text}), encoder) for text in templates]
    return PatternEnsemble(each, weights)
