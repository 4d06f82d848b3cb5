"""Prompt tuning (Lester et al. 2021; google-research/prompt-tuning, prompts.py): trained input embeddings in front."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from orchestrator.recipe import methods as recipe
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.methods import starting
from orchestrator.tuning.prompt import Prompt


class PromptTuning(nn.Module):
    slots: Literal["front"] = "front"

    def __init__(
        self, config: recipe.PromptTuning, host: BaseHost, *, length: int | None, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.length = length or config.length
        self.embeddings = nn.Parameter(starting.embeddings(config.init, host, self.length, generator))

    def prompt(self) -> Prompt:
        return Prompt(self.embeddings)
