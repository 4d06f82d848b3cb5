"""Starting values, drawn from a given generator and nowhere else."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from orchestrator.errors import MethodDoesNotFit
from orchestrator.recipe.methods import Init, RandomInit, TextInit
from orchestrator.tuning.host import BaseHost

FREQUENT = 5000  #: Lester et al. 2021 draw from the first 5,000 ids of a vocabulary sorted by frequency


def embeddings(init: Init, host: BaseHost, length: int, generator: torch.Generator) -> Tensor:
    """[n, H] fp32."""
    if isinstance(init, RandomInit):
        return (torch.rand(length, host.embedding_width, generator=generator) * 2 - 1) * init.scale
    if isinstance(init, TextInit):
        ids = text_tokens(init, host, length)
    else:
        ids = vocab_tokens(host, length, init.top, generator)
    with torch.no_grad():
        return host.embed(ids[None])[0].float().cpu()


def vocab_tokens(host: BaseHost, length: int, top: int, generator: torch.Generator) -> Tensor:
    """[n] ids among the first `top`, without replacement (again from the start where n is larger)."""
    size = min(top, host.vocab_size, len(host.tokenizer) if host.tokenizer is not None else top)
    rounds = [torch.randperm(size, generator=generator) for _ in range(math.ceil(length / size))]
    return torch.cat(rounds)[:length]


def text_tokens(init: TextInit, host: BaseHost, length: int) -> Tensor:
    """[n] ids of the text, repeated or cut."""
    ids = host.tokenizer(init.text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise MethodDoesNotFit(f"the base's tokenizer finds no token in {init.text!r}", where="method.init.text")
    return torch.tensor(ids).repeat(math.ceil(length / len(ids)))[:length]


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with torch's own default distribution."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    nn.init.uniform_(layer.bias, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)
    return layer


def lstm(inputs: int, hidden: int, dropout: float, generator: torch.Generator) -> nn.LSTM:
    """Two layers, both directions, with torch's own default distribution."""
    layer = nn.LSTM(inputs, hidden, num_layers=2, bidirectional=True, dropout=dropout, device="meta")
    layer = layer.to_empty(device="cpu")
    for weight in layer.parameters():
        nn.init.uniform_(weight, -1 / math.sqrt(hidden), 1 / math.sqrt(hidden), generator=generator)
    return layer
