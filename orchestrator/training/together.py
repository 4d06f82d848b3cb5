"""One optimizer step for all jobs of a run: each with its own clip, rate, decay and step count, in a few operations.

The operations on a job's numbers are torch's own AdamW and clip_grad_norm_, one for one; only how many tensors an
operation is told of at once differs. On a GPU a job costs no kernel launches of its own, and nothing waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim

from orchestrator.training.job import TrainedJob
from orchestrator.training.optimizers import in_single
from orchestrator.tuning.transfer import sent


def apply_together(jobs: Sequence[TrainedJob]) -> Tensor:
    """One optimizer step of each job with the gradients at hand; [k] their norms before clipping, on the device."""
    norms = clip_together([job.parameters for job in jobs], [job.recipe.train.clip for job in jobs])
    for job in jobs:
        job.set_rates()
    optimizers = [job.optimizer for job in jobs if job.optimizer is not None]
    adamw_together([optimizer for optimizer in optimizers if isinstance(optimizer, optim.AdamW)])
    for optimizer in optimizers:
        if not isinstance(optimizer, optim.AdamW):
            optimizer.step()
    for job in jobs:
        job.stepped()
    return norms


@torch.no_grad()
def clip_together(groups: Sequence[Sequence[nn.Parameter]], clips: Sequence[float | None]) -> Tensor:
    """Scale each group's gradients to its own largest norm (None: leave them); [k] norms before."""
    gradients = [[p.grad for p in group if p.grad is not None] for group in groups]
    flat = [gradient for own in gradients for gradient in own]
    each = iter(torch._foreach_norm(flat))
    own = [torch.stack([next(each) for _ in group]) for group in gradients]
    norms = torch.stack([norm[0] if len(norm) == 1 else torch.linalg.vector_norm(norm) for norm in own])
    if all(clip is None for clip in clips):
        return norms
    limits = torch.tensor([float("inf") if clip is None else clip for clip in clips], dtype=norms.dtype)
    # As clip_grad_norm_ rounds: a number over a tensor is the number times the tensor's inverse.
    factors = ((norms + 1e-6).reciprocal() * sent(limits, norms.device)).clamp(max=1.0).unbind()
    torch._foreach_mul_(flat, [f for f, group in zip(factors, gradients, strict=True) for _ in group])
    return norms


@torch.no_grad()
def adamw_together(optimizers: Sequence[optim.AdamW]) -> None:
    """torch.optim.AdamW.step of each, in one go."""
    found = [
        (o, group, p) for o in optimizers for group in o.param_groups for p in group["params"] if p.grad is not None
    ]
    if not found:
        return
    states = [_state(optimizer, parameter) for optimizer, _, parameter in found]
    groups = [group for _, group, _ in found]
    torch._foreach_add_([state["step"] for state in states], 1)
    taken = [state["step"].item() for state in states]  # on the CPU always
    parameters = [parameter for _, _, parameter in found]
    gradients = [parameter.grad for parameter in parameters]
    first, second = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    beta1, beta2 = ([group["betas"][i] for group in groups] for i in (0, 1))
    if any(group["weight_decay"] for group in groups):
        torch._foreach_mul_(parameters, [in_single(1 - group["lr"] * group["weight_decay"]) for group in groups])
    for beta in set(beta1):  # with a list of weights it rounds otherwise
        own = [i for i, other in enumerate(beta1) if other == beta]
        torch._foreach_lerp_([first[i] for i in own], [gradients[i] for i in own], 1 - beta)
    torch._foreach_mul_(second, beta2)
    torch._foreach_addcmul_(second, gradients, gradients, [1 - beta for beta in beta2])
    below = torch._foreach_sqrt(second)
    torch._foreach_div_(below, [(1 - beta**step) ** 0.5 for beta, step in zip(beta2, taken, strict=True)])
    torch._foreach_add_(below, [group["eps"] for group in groups])
    sizes = [in_single(-group["lr"] / (1 - beta**step)) for group, beta, step in zip(groups, beta1, taken, strict=True)]
    torch._foreach_addcdiv_(parameters, first, below, sizes)


def _state(optimizer: optim.AdamW, parameter: nn.Parameter) -> dict[str, Any]:
    """As torch's AdamW keeps it, so that checkpoints of either are the other's."""
    state: dict[str, Any] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state
