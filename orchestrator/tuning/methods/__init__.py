"""The methods: one explicit table from a recipe's method to the class that owns its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from orchestrator.recipe.methods import Method
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.methods.autoprompt import AutoPrompt
from orchestrator.tuning.methods.lora import Lora
from orchestrator.tuning.methods.method import TunedMethod
from orchestrator.tuning.methods.no_prompt import NoPrompt
from orchestrator.tuning.methods.p_tuning import PTuning
from orchestrator.tuning.methods.p_tuning_v2 import PTuningV2
from orchestrator.tuning.methods.prefix_tuning import prefix_tuning
from orchestrator.tuning.methods.prompt_tuning import PromptTuning
from orchestrator.tuning.methods.warp import warp

__all__ = ["METHODS", "TunedMethod", "build_method"]

METHODS: dict[str, Callable[..., Any]] = {
    "prompt-tuning": PromptTuning,
    "prefix-tuning": prefix_tuning,
    "p-tuning": PTuning,
    "p-tuning-v2": PTuningV2,
    "warp": warp,
    "autoprompt": AutoPrompt,
    "pet": NoPrompt,
    "head": NoPrompt,
    "prompt-design": NoPrompt,
    "fine-tuning": NoPrompt,
    "lora": Lora,
    "lm-adapt": NoPrompt,
}


def build_method(config: Method, host: BaseHost, *, length: int | None, generator: torch.Generator) -> TunedMethod:
    """The method with its starting values, on the host's device, in fp32.

    `length`: virtual tokens that the template places; None: the configuration's own. `generator` (on the CPU) is the
    only source of randomness. Raises MethodDoesNotFit.
    """
    method: TunedMethod = METHODS[config.type](config, host, length=length, generator=generator).to(host.device)
    return method
