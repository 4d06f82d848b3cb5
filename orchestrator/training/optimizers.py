"""The optimizers that a recipe may name, and what each of a job's parts is trained with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn, optim

from orchestrator.recipe import optimizers as recipe
from orchestrator.recipe.schema import Train
from orchestrator.tuning.methods import TunedMethod
from orchestrator.tuning.own_weights import OwnWeights


def optimizer_of(
    train: Train, method: TunedMethod, head: nn.Module | None, weights: OwnWeights | None
) -> optim.Optimizer | None:
    """Over all that a job trains, each part at its own rate and decay; None: it trains nothing."""
    groups: list[dict[str, Any]] = [{"params": [p for p in method.parameters() if p.requires_grad], "lr": train.lr}]
    if head is not None:
        groups.append({"params": list(head.parameters()), "lr": train.head_lr or train.lr})
    if weights is not None:
        groups += _groups_of_base(train, weights.parameters)
    groups = [{**group, "initial_lr": group["lr"]} for group in groups if group["params"]]
    return build_optimizer(train.optimizer, groups, in_single(train.weight_decay)) if groups else None


def _groups_of_base(train: Train, parameters: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    """Matrices decay; biases and the scales of norms do not (Devlin et al. 2019, and all code that followed).

    In the parameters' own order: checkpoints number them through all groups.
    """
    decay = in_single(train.weight_decay if train.base_weight_decay is None else train.base_weight_decay)
    lr, chosen = train.base_lr or train.lr, train.optimizer
    form = {"factored": chosen.factored} if isinstance(chosen, recipe.Adafactor) else {}
    if decay == 0:
        return [{"params": list(parameters), "lr": lr, "weight_decay": 0.0, **form}]
    alike = groupby(parameters, key=lambda parameter: parameter.dim() > 1)
    return [{"params": list(own), "lr": lr, "weight_decay": decay if many else 0.0, **form} for many, own in alike]


def build_optimizer(
    config: recipe.AdamW | recipe.Adam | recipe.Adafactor, groups: Iterable[Any], weight_decay: float
) -> optim.Optimizer:
    """Over parameter groups with their own `lr`; `weight_decay`: of those that have none of their own."""
    if isinstance(config, recipe.Adafactor):
        options = {"decay": config.decay, "clipping_threshold": config.clipping_threshold, "eps": config.eps}
        return Adafactor(groups, weight_decay=weight_decay, **options)
    kind = optim.Adam if isinstance(config, recipe.Adam) else optim.AdamW
    return kind(groups, betas=(config.beta1, config.beta2), eps=config.eps, weight_decay=weight_decay)


def in_single(number: float, largest: float = torch.finfo(torch.float32).max) -> float:
    """A factor as fp32 holds it: infinite where it is larger than its `largest` number (3.4e38).

    torch refuses such a factor, which would end the step of all jobs; an infinite one ends its own at the next loss.
    """
    return number if abs(number) <= largest else math.copysign(math.inf, number)


def rate_in_single(rate: float) -> float:
    """A learning rate likewise: Adam divides it by 1 - beta1^step, before fp32 has to hold it."""
    return in_single(rate, 1e30)


#: A matrix is factored if it has so many rows and columns (t5x/adafactor.py, `min_dim_size_to_factor`).
LEAST_FACTORED = 128


class Adafactor(optim.Optimizer):
    """Adafactor as google-research/prompt-tuning uses it (t5x/adafactor.py, `factored` off for prompts).

    For each parameter p with gradient g at step t = 1, 2, …, and the learning rate a:

        v = b v + (1 - b) (g^2 + eps),    b = 1 - t^-decay
        u = g / sqrt(v) / max(1, rms(g / sqrt(v)) / clipping_threshold)
        p = (1 - weight_decay) p - a u

    In a group with `factored`, a matrix of 128 rows and columns or more has in place of v the means of its rows, r, and
    of its columns, c, each forgetting as v does, and v = r c / mean(r) (Shazeer & Stern 2018, algorithm 4).

    transformers' Adafactor factors every matrix, a prompt too, and multiplies the weight decay by a: another optimizer.
    """

    def __init__(
        self, params: Any, *, weight_decay: float, decay: float, clipping_threshold: float, eps: float
    ) -> None:
        options = {"weight_decay": weight_decay, "decay": decay, "clipping_threshold": clipping_threshold, "eps": eps}
        super().__init__(params, {**options, "factored": False})

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
            state |= _moments(parameter, factored=group["factored"])
        state["step"] += 1
        gradient = gradient.to(torch.promote_types(parameter.dtype, torch.float32))
        # In double precision: near 1 the difference to 1 is what counts.
        forgotten = float(state["step"]) ** -group["decay"]
        squares = gradient.square() + group["eps"]
        if "second_moment" in state:  # also of what a checkpoint of before matrices were factored holds
            update = gradient * _averaged(state["second_moment"], squares, forgotten).rsqrt()
        else:
            rows = _averaged(state["row_moment"], squares.mean(1, keepdim=True), forgotten)
            columns = _averaged(state["column_moment"], squares.mean(0, keepdim=True), forgotten)
            update = gradient * (rows / rows.mean()).rsqrt() * columns.rsqrt()
        update /= (update.square().mean().sqrt() / group["clipping_threshold"]).clamp_min(1.0)
        parameter.mul_(1 - group["weight_decay"]).sub_(update, alpha=in_single(group["lr"]))


def _moments(parameter: Tensor, *, factored: bool) -> dict[str, Tensor]:
    """What is kept of a parameter's squared gradients, as it starts."""
    zeros = torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))
    if not factored or parameter.dim() != 2 or min(parameter.shape) < LEAST_FACTORED:
        return {"second_moment": zeros}
    return {"row_moment": zeros[:, :1].clone(), "column_moment": zeros[:1].clone()}


def _averaged(moment: Tensor, new: Tensor, forgotten: float) -> Tensor:
    return moment.mul_(1 - forgotten).add_(new, alpha=forgotten)
