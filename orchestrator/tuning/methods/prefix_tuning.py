"""Prefix tuning (Li & Liang 2021; XiangLi1999/PrefixTuning, gpt2/train_control.py and seq2seq/prefixTuning.py): trained
keys and values in every attention layer; encoder-decoder bases get three: encoder, decoder and cross attention."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from orchestrator.recipe import methods as recipe
from orchestrator.recipe.starts import NormalInit, VocabInit
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.methods import deep
from orchestrator.tuning.prompt import Prompt


class PrefixTuning(nn.Module):
    slots: Literal["none"] = "none"

    def __init__(
        self, config: recipe.PrefixTuning, host: BaseHost, *, length: int | None, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.length = length or config.length
        self.dropout = config.dropout
        direct = isinstance(config.reparameterization, recipe.NoReparameterization)
        init = config.init or (VocabInit() if direct else NormalInit())
        self.makers = deep.makers(host, self.length, config.reparameterization, init, generator)

    def prompt(self) -> Prompt:
        return deep.prompt_of(self.makers, self.dropout, self.training)
