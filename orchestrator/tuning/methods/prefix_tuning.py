"""Prefix tuning (Li & Liang 2021; XiangLi1999/PrefixTuning, gpt2/train_control.py and seq2seq/prefixTuning.py): trained
keys and values in every attention layer; encoder-decoder bases get three: encoder, decoder and cross attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.errors import MethodDoesNotFit
from orchestrator.recipe import methods as recipe
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.injection import Site
from orchestrator.tuning.methods import starting
from orchestrator.tuning.prompt import Prompt

MLP_HIDDEN = 512  #: Li & Liang 2021 for tables; 800 for summaries


class PrefixTuning(nn.Module):
    slots: Literal["none"] = "none"

    def __init__(
        self, config: recipe.PrefixTuning, host: BaseHost, *, length: int | None, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.length = length or config.length
        self.dropout = config.dropout
        groups = _uniform_groups(host)
        reparameterization = config.reparameterization
        if isinstance(reparameterization, recipe.MlpReparameterization):
            hidden = reparameterization.hidden or MLP_HIDDEN
            makers: list[nn.Module] = [
                Perceptron(sites, self.length, host.embedding_width, hidden, generator) for sites in groups.values()
            ]
        else:
            start = keys_values_of_text(host, starting.vocab_tokens(host, self.length, starting.FREQUENT, generator))
            makers = [Direct(start[name]) for name in groups]
        self.makers = nn.ModuleDict(dict(zip(groups, makers, strict=True)))

    def prompt(self) -> Prompt:
        made = {name: maker() for name, maker in self.makers.items()}
        return Prompt(keys_values={n: functional.dropout(t, self.dropout, self.training) for n, t in made.items()})


class Direct(nn.Module):
    """The keys and values themselves."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.keys_values = nn.Parameter(start)

    def forward(self) -> Tensor:
        """[L, 2, kv_heads, n, head_dim]."""
        return self.keys_values


class Perceptron(nn.Module):
    """Embedding(n, H) -> Linear -> Tanh -> Linear to all layers' keys and values."""

    def __init__(self, sites: Sequence[Site], length: int, width: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = (len(sites), 2, sites[0].kv_heads, sites[0].head_dim)
        self.inputs = nn.Parameter(torch.randn(length, width, generator=generator))
        first = starting.linear(width, hidden, generator)
        second = starting.linear(hidden, torch.Size(self.shape).numel(), generator)
        self.mlp = nn.Sequential(first, nn.Tanh(), second)

    def forward(self) -> Tensor:
        """[L, 2, kv_heads, n, head_dim]."""
        made: Tensor = self.mlp(self.inputs)
        return made.view(-1, *self.shape).permute(1, 2, 3, 0, 4)


def keys_values_of_text(host: BaseHost, ids: Tensor) -> dict[str, Tensor]:
    """What the frozen base itself computes for `ids` [n]: site name -> [L, 2, kv_heads, n, head_dim], fp32.

    A better start than random numbers (Li & Liang 2021, section 7.4; PEFT's method comparison: 0.42 against 0.19).
    """
    calls = host.record(ids[None])
    found: dict[str, list[Tensor]] = {}
    for site, call in zip(host.sites, calls, strict=True):
        found.setdefault(site.name, []).append(torch.stack([call.key[0], call.value[0]]))
    return {name: torch.stack(layers).float().cpu() for name, layers in found.items()}


def _uniform_groups(host: BaseHost) -> dict[str, list[Site]]:
    """Site name -> its layers. Raises MethodDoesNotFit where a prefix cannot be one tensor, or cannot enter at all."""
    groups: dict[str, list[Site]] = {}
    for site in host.sites:
        groups.setdefault(site.name, []).append(site)
    what = type(host.model).__name__
    if not groups:
        reason = f"{what} does not use transformers' attention interface, so no prefix can enter its layers"
        raise MethodDoesNotFit(reason, where="method.type")
    for sites in groups.values():
        if len({(site.kv_heads, site.head_dim) for site in sites}) > 1:
            raise MethodDoesNotFit(f"the attention layers of {what} differ in their shapes", where="method.type")
    return groups
