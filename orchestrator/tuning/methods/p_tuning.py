"""P-tuning (Liu et al. 2021; THUDM/P-tuning, LAMA/p_tuning/prompt_encoder.py): virtual tokens anywhere in the template,
made from trained inputs by a two-layer bidirectional LSTM and a two-layer perceptron, or by the perceptron alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.errors import MethodDoesNotFit
from orchestrator.recipe import methods as recipe
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.methods import starting
from orchestrator.tuning.methods.method import Slots
from orchestrator.tuning.prompt import Prompt


class PTuning(nn.Module):
    slots: Slots

    def __init__(
        self, config: recipe.PTuning | recipe.Warp, host: BaseHost, *, length: int | None, generator: torch.Generator
    ) -> None:
        super().__init__()
        count = length or config.length
        if count is None:
            what = "neither the method nor the template says how many virtual tokens"
            raise MethodDoesNotFit(what, where="method.length")
        self.length = count
        self.slots = "template" if config.length is None else "front"
        self.inputs = nn.Parameter(starting.embeddings(config.init, host, count, generator))
        network = config.reparameterization if isinstance(config, recipe.PTuning) else recipe.NoReparameterization()
        self.encoder = _encoder(network, host.embedding_width, generator)

    def prompt(self) -> Prompt:
        return Prompt(self.encoder(self.inputs))


class LstmEncoder(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.lstm = starting.lstm(width, hidden // 2, dropout, generator)
        self.mlp = _perceptron(hidden // 2 * 2, width, width, generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """[n, H] -> [n, H]."""
        states, _ = self.lstm(inputs)
        encoded: Tensor = self.mlp(states)
        return encoded


def _encoder(
    config: recipe.LstmReparameterization | recipe.MlpReparameterization | recipe.NoReparameterization,
    width: int,
    generator: torch.Generator,
) -> nn.Module:
    if isinstance(config, recipe.NoReparameterization):
        return nn.Identity()
    hidden = config.hidden or width
    if isinstance(config, recipe.MlpReparameterization):
        return _perceptron(width, hidden, width, generator)
    return LstmEncoder(width, hidden, config.dropout, generator)


def _perceptron(inputs: int, hidden: int, outputs: int, generator: torch.Generator) -> nn.Sequential:
    first = starting.linear(inputs, hidden, generator)
    return nn.Sequential(first, nn.ReLU(), starting.linear(hidden, outputs, generator))
