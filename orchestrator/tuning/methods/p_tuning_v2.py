"""P-tuning v2 (Liu et al. 2022; THUDM/P-tuning-v2, model/prefix_encoder.py): trained keys and values in every layer of
one stack.

As prefix tuning, with other defaults: no network (its "projection" is the same perceptron), a random start, dropout.
The released code reads [CLS] through the pooler of BertModel and RobertaModel, frozen with the rest: BERT's checkpoints
hold one (`head: {pooling: pooler}`); RoBERTa's do not, so there it reads a random one, and we [CLS] itself
(`pooling: cls`). Its DeBERTa trains a pooler of its own, which we do not have.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from orchestrator.errors import MethodDoesNotFit
from orchestrator.recipe import methods as recipe
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.methods import deep
from orchestrator.tuning.prompt import Prompt


class PTuningV2(nn.Module):
    slots: Literal["none"] = "none"

    def __init__(
        self, config: recipe.PTuningV2, host: BaseHost, *, length: int | None, generator: torch.Generator
    ) -> None:
        super().__init__()
        if host.kind == "seq2seq":
            what = "p-tuning-v2 is for one stack of layers; prefix-tuning is for encoder-decoder bases"
            raise MethodDoesNotFit(what, where="method.type")
        self.length = length or config.length
        self.makers = deep.makers(host, self.length, config.reparameterization, config.init, generator)

    def prompt(self) -> Prompt:
        return deep.prompt_of(self.makers)
