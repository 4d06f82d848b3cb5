"""What the trained linear heads share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from orchestrator.errors import BadRecipe
from orchestrator.training.objectives.objective import Share, widened
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.transfer import numbers


def new_linear(host: BaseHost, outputs: int) -> nn.Linear:
    """[H] -> [outputs]: N(0, 0.02) weights and zero bias, as BERT's own heads start."""
    layer = nn.Linear(host.state_width, outputs)
    _start(layer)
    return layer


class PooledLinear(nn.Linear):
    """The same on the base's own pooler, which stays as it is: BERT's `pooler_output`, as P-tuning v2 reads it."""

    def __init__(self, host: BaseHost, outputs: int) -> None:
        super().__init__(host.state_width, outputs)
        _start(self)
        dense = host.pooler
        if dense is None:
            raise BadRecipe("the base's weights hold no pooler", where="task.head.pooling", hint="write `pooling: cls`")
        for name, tensor in zip(("pooler_weight", "pooler_bias"), dense, strict=True):
            self.register_buffer(name, tensor.float(), persistent=False)  # the base's: no part of what is kept

    def pooled(self, first: Tensor) -> Tensor:
        """[…, H] states of the first token -> […, H]."""
        weight, bias = (getattr(self, name).to(first.dtype) for name in ("pooler_weight", "pooler_bias"))
        return linear(first, weight, bias).tanh()


def _start(layer: nn.Linear) -> None:
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)


def head_scores(head: nn.Module | None, states: Tensor) -> Tensor:
    """[…, H] -> […, outputs] in fp32."""
    assert head is not None
    scores: Tensor = head(widened(states))
    return scores


def dropped(states: Tensor, share: Share, probability: float) -> Tensor:
    """`states` [rows, …, H] with dropout, the same for all of a row's tokens.

    Drawn for the whole batch, so that a row's does not depend on which rank or pass it falls to.
    """
    if probability == 0:
        return states
    drawn = torch.rand(share.batch, states.shape[-1], device=states.device)[numbers(share.positions, states.device)]
    kept = (drawn >= probability) / (1 - probability)
    return states * kept.view(len(kept), *[1] * (states.dim() - 2), -1)
