"""What the methods with keys and values in every layer share: how they are made, and where they start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.errors import MethodDoesNotFit
from orchestrator.recipe.methods import NoReparameterization, PrefixMlp
from orchestrator.recipe.starts import ArtifactInit, NormalInit, PromptInit, StatesInit, TextInit, VocabInit, WordsInit
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.injection import Site
from orchestrator.tuning.methods import starting
from orchestrator.tuning.prompt import Prompt

FIT_STEPS, FIT_LR = 500, 1e-4  #: XiangLi1999/PrefixTuning, gpt2/train_control.py, lowdata_init_train3


class Direct(nn.Module):
    """The keys and values themselves."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.keys_values = nn.Parameter(start)

    def forward(self) -> Tensor:
        """[L, 2, kv_heads, n, head_dim]."""
        return self.keys_values


class Perceptron(nn.Module):
    """Embedding(n, H) -> (Linear -> Tanh) once or twice -> Linear to all layers' keys and values."""

    def __init__(
        self,
        sites: Sequence[Site],
        length: int,
        width: int,
        network: PrefixMlp,
        generator: torch.Generator,
        std: float = 1.0,
    ) -> None:
        super().__init__()
        self.shape = (len(sites), 2, sites[0].kv_heads, sites[0].head_dim)
        self.inputs = nn.Parameter(torch.randn(length, width, generator=generator) * std)
        self.mlp = starting.tanh_perceptron(
            width, network.hidden, torch.Size(self.shape).numel(), network.layers, generator
        )

    def forward(self) -> Tensor:
        """[L, 2, kv_heads, n, head_dim]."""
        made: Tensor = self.mlp(self.inputs)
        return made.view(-1, *self.shape).permute(1, 2, 3, 0, 4)

    def fit(self, start: Tensor) -> None:
        """Bring the output near `start` by its mean squared error: the released code's start for few rows."""
        optimizer = torch.optim.Adam(self.parameters(), lr=FIT_LR)
        with torch.enable_grad():
            for _ in range(FIT_STEPS):
                optimizer.zero_grad()
                functional.mse_loss(self(), start).backward()
                optimizer.step()
        optimizer.zero_grad()


def makers(
    host: BaseHost,
    length: int,
    network: PrefixMlp | NoReparameterization,
    init: StatesInit,
    generator: torch.Generator,
) -> nn.ModuleDict:
    """Site name -> the module that makes its keys and values. Raises MethodDoesNotFit."""
    groups = uniform_groups(host)
    std = init.std if isinstance(init, NormalInit) else 1.0
    start = None if isinstance(init, NormalInit) else starting_states(init, host, groups, length, generator)
    made: dict[str, nn.Module] = {}
    for name, sites in groups.items():
        if isinstance(network, NoReparameterization):
            shape = (len(sites), 2, sites[0].kv_heads, length, sites[0].head_dim)
            made[name] = Direct(torch.randn(shape, generator=generator) * std if start is None else start[name])
            continue
        maker = Perceptron(sites, length, host.embedding_width, network, generator, std)
        if start is not None:
            maker.fit(start[name])
        made[name] = maker
    return nn.ModuleDict(made)


def prompt_of(made: nn.ModuleDict) -> Prompt:
    return Prompt(keys_values={name: maker() for name, maker in made.items()})


def starting_states(
    init: VocabInit | TextInit | WordsInit | PromptInit | ArtifactInit,
    host: BaseHost,
    groups: Mapping[str, Sequence[Site]],
    length: int,
    generator: torch.Generator,
) -> Mapping[str, Tensor]:
    """Site name -> [L, 2, kv_heads, n, head_dim] that the recipe asks for."""
    if isinstance(init, ArtifactInit):
        raise starting.unresolved()
    if not isinstance(init, PromptInit):
        return keys_values_of_text(host, starting.tokens(init, host, length, generator))
    found = Prompt.from_tensors(starting.mixed_prompts(init)).keys_values
    wanted = {n: (len(sites), 2, sites[0].kv_heads, length, sites[0].head_dim) for n, sites in groups.items()}
    given = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if given != wanted:
        raise MethodDoesNotFit(f"the prompt holds {given}; {wanted} is needed", where="method.init.path")
    return found


def keys_values_of_text(host: BaseHost, ids: Tensor) -> dict[str, Tensor]:
    """What the frozen base itself computes for `ids` [n]: site name -> [L, 2, kv_heads, n, head_dim], fp32.

    A better start than random numbers (Li & Liang 2021, section 7.4; PEFT's method comparison: 0.42 against 0.19).
    """
    calls = host.record(ids[None])
    found: dict[str, list[Tensor]] = {}
    for site, call in zip(host.sites, calls, strict=True):
        found.setdefault(site.name, []).append(torch.stack([call.key[0], call.value[0]]))
    return {name: torch.stack(layers).float().cpu() for name, layers in found.items()}


def uniform_groups(host: BaseHost) -> dict[str, list[Site]]:
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
        if any(site.value_dim != site.head_dim for site in sites):
            raise MethodDoesNotFit(f"keys and values of {what} differ in width", where="method.type")
    return groups
