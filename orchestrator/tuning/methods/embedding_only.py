"""The embedding-only ablation of prefix tuning (Li & Liang 2021, §7.2; gpt2/train_control.py, PrefixEmbTuning): input
embeddings made by the same perceptron; the base itself computes the layers above them."""

from __future__ import annotations

import torch
from torch import nn

from orchestrator.errors import MethodDoesNotFit
from orchestrator.recipe import methods as recipe
from orchestrator.recipe.starts import NormalInit, VocabInit, WordsInit
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.methods import starting
from orchestrator.tuning.methods.method import Slots
from orchestrator.tuning.prompt import Prompt


class EmbeddingOnly(nn.Module):
    slots: Slots = "front"

    def __init__(
        self, config: recipe.PrefixTuning, host: BaseHost, *, length: int | None, generator: torch.Generator
    ) -> None:
        super().__init__()
        if config.placement == "infix":
            raise MethodDoesNotFit("embedding-only stands in front of the text", where="method.placement")
        self.length = length or config.length
        network, width = config.reparameterization, host.embedding_width
        self.inputs = nn.Parameter(_start(config, host, self.length, generator))
        self.mlp: nn.Module = nn.Identity()
        if isinstance(network, recipe.PrefixMlp):
            self.mlp = starting.tanh_perceptron(width, network.hidden, width, network.layers, generator)

    def prompt(self) -> Prompt:
        return Prompt(self.mlp(self.inputs))


def _start(config: recipe.PrefixTuning, host: BaseHost, length: int, generator: torch.Generator) -> torch.Tensor:
    """[n, H]: what the recipe says, of the embeddings or of the perceptron's inputs."""
    direct = isinstance(config.reparameterization, recipe.NoReparameterization)
    init = config.init or (VocabInit() if direct else NormalInit())
    if isinstance(init, NormalInit):
        return torch.randn(length, host.embedding_width, generator=generator) * init.std
    if isinstance(init, WordsInit):
        return starting.embedded(host, starting.tokens(init, host, length, generator))
    return starting.embeddings(init, host, length, generator)
