"""What the trained linear heads share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.training.objectives.objective import Share, widened
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.transfer import numbers


def new_linear(host: BaseHost, outputs: int) -> nn.Linear:
    """[H] -> [outputs]: N(0, 0.02) weights and zero bias, as BERT's own heads start."""
    linear = nn.Linear(host.model.config.hidden_size, outputs)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear


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
