"""No virtual tokens: what is trained, if anything, is a head or the base itself, and whoever owns it trains it."""

from __future__ import annotations

import torch
from torch import nn

from orchestrator.recipe import methods as recipe
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.methods.method import Slots
from orchestrator.tuning.prompt import Prompt


class NoPrompt(nn.Module):
    slots: Slots = "none"
    length = 0

    def __init__(
        self, config: recipe.Method, host: BaseHost, *, length: int | None, generator: torch.Generator
    ) -> None:
        super().__init__()

    def prompt(self) -> Prompt:
        return Prompt.empty()
