"""The optimizers that a recipe may name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, optim

from orchestrator.recipe import optimizers as recipe


def build_optimizer(
    config: recipe.AdamW | recipe.Adam | recipe.Adafactor, groups: Iterable[Any], weight_decay: float
) -> optim.Optimizer:
    """Over parameter groups with their own `lr`; `weight_decay`: of those that have none of their own."""
    if isinstance(config, recipe.Adafactor):
        options = {"decay": config.decay, "clipping_threshold": config.clipping_threshold, "eps": config.eps}
        return Adafactor(groups, weight_decay=weight_decay, **options)
    kind = optim.Adam if isinstance(config, recipe.Adam) else optim.AdamW
    return kind(groups, betas=(config.beta1, config.beta2), eps=config.eps, weight_decay=weight_decay)


def in_single(number: float) -> float:
    """A factor as fp32 holds it: infinite where it is larger than its largest number (3.4e38).

    torch refuses such a factor, which would end the step of all jobs; an infinite one ends its own at the next loss.
    """
    return number if abs(number) <= torch.finfo(torch.float32).max else math.copysign(math.inf, number)


class Adafactor(optim.Optimizer):
    """Adafactor as google-research/prompt-tuning trains prompts with it (t5x/adafactor.py, `factored` off for prompts).

    For each parameter p with gradient g at step t = 1, 2, …, and the learning rate a:

        v = b v + (1 - b) (g^2 + eps),    b = 1 - t^-decay
        u = g / sqrt(v) / max(1, rms(g / sqrt(v)) / clipping_threshold)
        p = (1 - weight_decay) p - a u

    transformers' Adafactor factors every matrix, a prompt too, and multiplies the weight decay by a: another optimizer.
    """

    def __init__(
        self, params: Any, *, weight_decay: float, decay: float, clipping_threshold: float, eps: float
    ) -> None:
        options = {"weight_decay": weight_decay, "decay": decay, "clipping_threshold": clipping_threshold, "eps": eps}
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step. A closure is refused: the gradients of a fused step are there already."""
        if closure is not None:
            raise ValueError("Adafactor takes no closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["second_moment"] = torch.zeros_like(parameter, dtype=torch.float32)
        state["step"] += 1
        moment, gradient = state["second_moment"], gradient.float()
        # In double precision: near 1 the difference to 1 is what counts.
        forgotten = float(state["step"]) ** -group["decay"]
        moment.mul_(1 - forgotten).add_(gradient.square() + group["eps"], alpha=forgotten)
        update = gradient * moment.rsqrt()
        update /= (update.square().mean().sqrt() / group["clipping_threshold"]).clamp_min(1.0)
        parameter.mul_(1 - group["weight_decay"]).sub_(update, alpha=in_single(group["lr"]))
