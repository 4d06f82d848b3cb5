"""Prompt tuning (Lester et al. 2021; google-research/prompt-tuning, prompts.py): trained input embeddings in front,
plain or made by a residual network (Razdaibiedina et al. 2023; arazd/ResidualPrompts)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.recipe import methods as recipe
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.methods import starting
from orchestrator.tuning.methods.method import Slots
from orchestrator.tuning.prompt import Prompt


class PromptTuning(nn.Module):
    slots: Slots

    def __init__(
        self, config: recipe.PromptTuning, host: BaseHost, *, length: int | None, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.length = length or config.length
        self.slots = "front" if config.placement == "before-bos" else "after-bos"
        self.embeddings = nn.Parameter(starting.embeddings(config.init, host, self.length, generator))
        network = config.reparameterization
        self.encoder: nn.Module = nn.Identity()
        if isinstance(network, recipe.ResidualReparameterization):
            self.encoder = Residual(self.length, host.embedding_width, network, generator)

    def prompt(self) -> Prompt:
        return Prompt(self.encoder(self.embeddings))


class Residual(nn.Module):
    """p + MLP(p), with one perceptron for all virtual tokens or one for each."""

    def __init__(
        self, length: int, width: int, config: recipe.ResidualReparameterization, generator: torch.Generator
    ) -> None:
        super().__init__()
        count = 1 if config.shared else length
        self.networks = nn.ModuleList(_perceptron(width, config, generator) for _ in range(count))

    def forward(self, inputs: Tensor) -> Tensor:
        """[n, H] -> [n, H]."""
        parts = inputs.split(1) if len(self.networks) > 1 else [inputs]
        made = [network(part) for network, part in zip(self.networks, parts, strict=True)]
        return inputs + torch.cat(made)


def _perceptron(width: int, config: recipe.ResidualReparameterization, generator: torch.Generator) -> nn.Sequential:
    first = starting.linear(width, config.hidden, generator)
    second = starting.linear(config.hidden, width, generator)
    return nn.Sequential(first, nn.ReLU(), second, *([nn.LayerNorm(width)] if config.layer_norm else []))
