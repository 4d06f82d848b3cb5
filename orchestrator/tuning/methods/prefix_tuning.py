"""Prefix tuning (Li & Liang 2021; XiangLi1999/PrefixTuning, gpt2/train_control.py and seq2seq/prefixTuning.py): trained
keys and values in every attention layer; encoder-decoder bases get three: encoder, decoder and cross attention.

An infix (§7.3 of the paper) stands behind the input: its keys and values are seen by what follows it only. They are the
paper's free parameters; the released code adds what the base computes for virtual tokens there.
"""

from __future__ import annotations

import torch
from torch import nn

from orchestrator.errors import MethodDoesNotFit
from orchestrator.recipe import methods as recipe
from orchestrator.recipe.architectures import POSITIONS_ADDED
from orchestrator.recipe.starts import NormalInit, VocabInit
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.methods import deep
from orchestrator.tuning.methods.embedding_only import EmbeddingOnly
from orchestrator.tuning.methods.method import Slots, TunedMethod
from orchestrator.tuning.prompt import Prompt


def prefix_tuning(
    config: recipe.PrefixTuning, host: BaseHost, *, length: int | None, generator: torch.Generator
) -> TunedMethod:
    """Keys and values, or the ablation without them. Raises MethodDoesNotFit."""
    kind = EmbeddingOnly if config.embedding_only else PrefixTuning
    return kind(config, host, length=length, generator=generator)


class PrefixTuning(nn.Module):
    slots: Slots

    def __init__(
        self, config: recipe.PrefixTuning, host: BaseHost, *, length: int | None, generator: torch.Generator
    ) -> None:
        super().__init__()
        if config.placement == "infix" and not _takes_infix(host):
            what = f"{type(host.model).__name__} is not a causal model whose positions are added to its input"
            raise MethodDoesNotFit(what, where="method.placement")
        self.slots = "infix" if config.placement == "infix" else "none"
        self.length = length or config.length
        direct = isinstance(config.reparameterization, recipe.NoReparameterization)
        init = config.init or (VocabInit() if direct else NormalInit())
        self.makers = deep.makers(host, self.length, config.reparameterization, init, generator)

    def prompt(self) -> Prompt:
        return deep.prompt_of(self.makers)


def _takes_infix(host: BaseHost) -> bool:
    """Rotated keys hold their position, and an infix has another position in each row."""
    return host.kind == "causal" and host.takes_positions and host.model.config.model_type in POSITIONS_ADDED
