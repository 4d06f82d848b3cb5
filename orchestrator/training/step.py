"""One fused step: the next batch of each of k >= 1 jobs in one forward and one backward of the frozen base.

Each job keeps its own loss (the mean over its own units, on all ranks together), so the gradient that reaches its
prompt is exactly the gradient it would have alone: prompts of different jobs share no row.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from orchestrator.training.distributed import Processes
from orchestrator.training.job import FOR_BASE, FOR_HEAD, FOR_PROMPT, TrainedJob
from orchestrator.training.objectives import Example
from orchestrator.training.objectives.objective import Share
from orchestrator.tuning.forward import forward
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.rows import RowBatch


@dataclass
class Work:
    """One job's part of a step on this rank."""

    job: TrainedJob
    parts: list[list[Example]]  #: one list for each pass of accumulation
    units: int  #: of the job's whole batch, on all ranks
    weight: float  #: 0 where this rank has no row of its own and only keeps the others company
    tokens: int  #: real tokens of the whole batch
    loss: float = 0.0


def fused_step(host: BaseHost, jobs: Sequence[TrainedJob], batches: Sequence[list[Example]], processes: Processes) -> list[Work]:
    """Forward, backward and sum over ranks; each job's gradients are left in its parameters' `.grad`."""
    work = [_work(job, batch, processes) for job, batch in zip(jobs, batches, strict=True)]
    for part in range(max(len(w.parts) for w in work)):
        active = [w for w in work if part < len(w.parts)]
        _accumulate(host, active, part, processes.device)
    _sum_over_ranks(work, processes)
    return work


def _work(job: TrainedJob, batch: list[Example], processes: Processes) -> Work:
    mine = processes.share(batch)
    examples = mine or batch[:1]
    size = -(-len(examples) // job.recipe.train.accumulation)
    return Work(
        job=job,
        parts=[examples[i : i + size] for i in range(0, len(examples), size)],
        units=sum(example.units for example in batch),
        weight=1.0 if mine else 0.0,
        tokens=sum(len(example.row.ids) for example in batch),
    )


def _accumulate(host: BaseHost, work: Sequence[Work], part: int, device: torch.device) -> None:
    prompts, rows, spans = [], [], []
    for number, w in enumerate(work):
        with w.job.randomness(FOR_PROMPT, device):
            prompts.append(w.job.method.prompt())
        spans.append((len(rows), len(w.parts[part])))
        rows += [replace(example.row, prompt=number) for example in w.parts[part]]
    batch = RowBatch.collate(rows, pad_id=host.pad_id).to(device)
    with _base_mode(host, work, device):
        output = forward(host, batch, prompts, hidden=any(w.job.objective.reads_hidden for w in work))
    total = torch.zeros((), device=device)
    for w, (first, count) in zip(work, spans, strict=True):
        with w.job.randomness(FOR_HEAD, device):
            loss = w.job.objective.loss_sum(Share.of(output, first, count), w.parts[part], w.job.head)
        loss = loss * (w.weight / w.units)
        w.loss += loss.item()
        total = total + loss
    total.backward()


def _base_mode(host: BaseHost, work: Sequence[Work], device: torch.device) -> ExitStack:
    """The base's own dropout, off unless the run's only job asks for it."""
    stack = ExitStack()
    if len(work) == 1 and work[0].job.recipe.train.base_dropout:
        host.set_dropout(True)
        stack.callback(host.set_dropout, False)
        stack.enter_context(work[0].job.randomness(FOR_BASE, device))
    return stack


def _sum_over_ranks(work: Sequence[Work], processes: Processes) -> None:
    """All jobs' gradients and losses in one flat buffer, one all-reduce."""
    parameters = [p for w in work for p in w.job.parameters]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if processes.world == 1:
        return
    losses = torch.tensor([w.loss for w in work], device=processes.device, dtype=torch.float64)
    flat = torch.cat([p.grad.flatten().to(torch.float64) for p in parameters if p.grad is not None] + [losses])
    processes.sum_(flat)
    at = 0
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad.copy_(flat[at : at + parameter.numel()].view_as(parameter))
        at += parameter.numel()
    for w, loss in zip(work, flat[at:].tolist(), strict=True):
        w.loss = loss

