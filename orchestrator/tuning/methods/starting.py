"""Starting values, drawn from a given generator and nowhere else."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from orchestrator.errors import MethodDoesNotFit
from orchestrator.recipe.starts import Init, RandomInit, TextInit, VocabInit, WordsInit
from orchestrator.tuning.host import BaseHost


def embeddings(init: Init, host: BaseHost, length: int, generator: torch.Generator) -> Tensor:
    """[n, H] fp32."""
    if isinstance(init, RandomInit):
        return (torch.rand(length, host.embedding_width, generator=generator) * 2 - 1) * init.scale
    with torch.no_grad():
        return host.embed(tokens(init, host, length, generator)[None])[0].float().cpu()


def tokens(init: VocabInit | TextInit | WordsInit, host: BaseHost, length: int, generator: torch.Generator) -> Tensor:
    """[n] ids."""
    if isinstance(init, VocabInit):
        return vocab_tokens(host, length, init.top, generator)
    text, where = (init.text, "text") if isinstance(init, TextInit) else (" ".join(init.words), "words")
    return text_tokens(text, host, length, where=f"method.init.{where}")


def vocab_tokens(host: BaseHost, length: int, top: int, generator: torch.Generator) -> Tensor:
    """[n] ids among the first `top`, without replacement (again from the start where n is larger)."""
    size = min(top, host.vocab_size, len(host.tokenizer) if host.tokenizer is not None else top)
    rounds = [torch.randperm(size, generator=generator) for _ in range(math.ceil(length / size))]
    return torch.cat(rounds)[:length]


def text_tokens(text: str, host: BaseHost, length: int, *, where: str) -> Tensor:
    """[n] ids of the text, repeated or cut."""
    ids = host.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise MethodDoesNotFit(f"the base's tokenizer finds no token in {text!r}", where=where)
    return torch.tensor(ids).repeat(math.ceil(length / len(ids)))[:length]


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with torch's own default distribution."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    nn.init.uniform_(layer.bias, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)
    return layer


def tanh_perceptron(inputs: int, hidden: int, outputs: int, layers: int, generator: torch.Generator) -> nn.Sequential:
    """`layers` hidden layers with Tanh, and a linear one."""
    widths = [inputs, *[hidden] * layers]
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        parts += [linear(before, after, generator), nn.Tanh()]
    return nn.Sequential(*parts, linear(hidden, outputs, generator))


def lstm(inputs: int, hidden: int, dropout: float, generator: torch.Generator) -> nn.LSTM:
    """Two layers, both directions, with torch's own default distribution."""
    layer = nn.LSTM(inputs, hidden, num_layers=2, bidirectional=True, dropout=dropout, device="meta")
    layer = layer.to_empty(device="cpu")
    for weight in layer.parameters():
        nn.init.uniform_(weight, -1 / math.sqrt(hidden), 1 / math.sqrt(hidden), generator=generator)
    return layer
