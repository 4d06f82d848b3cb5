"""WARP (Hambardzumyan et al. 2021; YerevaNN/WARP): input embeddings at any slot, trained directly. The label vectors
belong to the task (`training.objectives.vectors`)."""

from __future__ import annotations

import torch

from orchestrator.recipe import methods as recipe
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.methods.method import TunedMethod
from orchestrator.tuning.methods.no_prompt import NoPrompt
from orchestrator.tuning.methods.p_tuning import PTuning


def warp(config: recipe.Warp, host: BaseHost, *, length: int | None, generator: torch.Generator) -> TunedMethod:
    """P-tuning without a network, or nothing but the label vectors. Raises MethodDoesNotFit."""
    if config.length == 0:
        return NoPrompt(config, host, length=None, generator=generator)
    return PTuning(config, host, length=length, generator=generator)
