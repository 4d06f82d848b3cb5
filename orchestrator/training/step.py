"""One fused step: the next batch of each of k >= 1 jobs in one forward and one backward of the frozen base.

Each job keeps its own loss (the mean over its own units, on all ranks together), so the gradient that reaches its
prompt is exactly the gradient it would have alone: prompts of different jobs share no row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from orchestrator.training.distributed import Processes
from orchestrator.training.job import FOR_BASE, FOR_HEAD, FOR_PROMPT, TrainedJob
from orchestrator.training.objectives import Example
from orchestrator.training.objectives.objective import Share
from orchestrator.tuning.forward import forward
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.prompt import Prompt
from orchestrator.tuning.rows import Row, RowBatch


@dataclass(frozen=True)
class Part:
    """What one pass of accumulation takes of a job's batch on this rank."""

    examples: list[Example]
    positions: list[int]  #: of the examples in the job's whole batch
    weight: float  #: 0 where this rank has no row of its own left and only keeps the others company


@dataclass
class Work:
    """One job's part of a step on this rank."""

    job: TrainedJob
    parts: list[Part]  #: equally many on all ranks: with a sharded base every rank runs every forward
    batch: int  #: rows of the whole batch, on all ranks
    units: int  #: of the whole batch, on all ranks
    tokens: int  #: real tokens of the whole batch
    loss: float = 0.0


def fused_step(
    host: BaseHost, jobs: Sequence[TrainedJob], batches: Sequence[list[Example]], processes: Processes
) -> list[Work]:
    """Forward, backward and sum over ranks; each job's gradients are left in its parameters' `.grad`."""
    work = [_work(job, batch, processes) for job, batch in zip(jobs, batches, strict=True)]
    for together in _groups(work):
        for part in range(max(len(w.parts) for w in together)):
            _accumulate(host, [w for w in together if part < len(w.parts)], part, processes)
    _sum_over_ranks(work, processes)
    return work


def _work(job: TrainedJob, batch: list[Example], processes: Processes) -> Work:
    mine = processes.share(range(len(batch)))
    most = -(-len(batch) // processes.world)
    size = -(-most // job.recipe.train.accumulation)
    parts = []
    for start in range(0, most, size):
        positions = mine[start : start + size]
        weight = 1.0 if positions else 0.0
        positions = positions or [0]
        parts.append(Part([batch[i] for i in positions], positions, weight))
    return Work(
        job=job,
        parts=parts,
        batch=len(batch),
        units=sum(example.units for example in batch),
        tokens=sum(len(example.row.ids) for example in batch),
    )


def _groups(work: Sequence[Work]) -> list[list[Work]]:
    """Who shares a forward: all, but a job that wants the base's dropout, which must not reach its neighbours."""
    plain = [w for w in work if not w.job.recipe.train.base_dropout]
    alone = [[w] for w in work if w.job.recipe.train.base_dropout]
    return [plain, *alone] if plain else alone


def _accumulate(host: BaseHost, work: Sequence[Work], part: int, processes: Processes) -> None:
    device = processes.device
    prompts: list[Prompt] = []
    rows: list[Row] = []
    firsts: list[int] = []
    for number, w in enumerate(work):
        with w.job.randomness(FOR_PROMPT, device):
            prompts.append(w.job.method.prompt())
        firsts.append(len(rows))
        rows += [replace(example.row, prompt=number) for example in w.parts[part].examples]
    batch = RowBatch.collate(rows, pad_id=host.pad_id).to(device)
    with _base_mode(host, work[0].job, part, processes):
        output = forward(host, batch, prompts, hidden=any(w.job.objective.reads_hidden for w in work))
    total = torch.zeros((), device=device)
    for w, first in zip(work, firsts, strict=True):
        mine = w.parts[part]
        with w.job.randomness(FOR_HEAD, device):
            share = Share.of(output, first, mine.positions, w.batch)
            loss = w.job.objective.loss_sum(share, mine.examples, w.job.head)
        loss = loss * (mine.weight / w.units)
        w.loss += loss.item()
        total = total + loss
    total.backward()


@contextmanager
def _base_mode(host: BaseHost, job: TrainedJob, part: int, processes: Processes) -> Iterator[None]:
    """The base's own dropout, off unless the job asks for it; every pass and rank draws for itself."""
    if not job.recipe.train.base_dropout:
        yield
        return
    host.set_dropout(True)
    try:
        with job.randomness(FOR_BASE, processes.device, part, processes.rank):
            yield
    finally:
        host.set_dropout(False)


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
