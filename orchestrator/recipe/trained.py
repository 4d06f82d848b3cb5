"""What a recipe trains: virtual tokens and heads, the base's own weights, or nothing at all."""

from __future__ import annotations

from typing import Literal

from orchestrator.recipe.methods import FineTuning, LmAdapt, Pet, PromptDesign
from orchestrator.recipe.schema import Recipe

Weights = Literal["none", "biases", "all"]


def trained_weights(recipe: Recipe) -> Weights:
    """Which of the base's own weights. Jobs that train any have the base for themselves."""
    if isinstance(recipe.method, FineTuning):
        return recipe.method.weights
    if isinstance(recipe.method, LmAdapt) or recipe.train.base_lr is not None:
        return "all"
    return "none"


def trains_nothing(recipe: Recipe) -> bool:
    """The job takes no step: it is scored, and leaves its artifact."""
    return isinstance(recipe.method, PromptDesign | Pet) and recipe.train.base_lr is None
