"""One fused step: the next batch of each of k >= 1 jobs in one forward and one backward of the frozen base.

Each job keeps its own loss (the mean over its own units, on all ranks together), so the gradient that reaches its
prompt is exactly the gradient it would have alone: prompts of different jobs share no row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from orchestrator.training.distributed import Processes
from orchestrator.training.failures import hear, may_tell, out_of_memory, tell
from orchestrator.training.job import FOR_BASE, FOR_HEAD, FOR_PROMPT, TrainedJob
from orchestrator.training.objectives import Example
from orchestrator.training.objectives.objective import Share
from orchestrator.tuning.forward import forward, packs
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.prompt import Prompt
from orchestrator.tuning.rows import Row, RowBatch

#: Padded bases: a further forward and backward where it saves so many tokens of padding. Eight rows of 128 tokens on a
#: T5 2M take 131 ms at 256 and 179 at 512; at 128 and below nothing more is gained, and bases of width 64 lose.
TOKENS_WORTH_A_FORWARD = 256
BUCKET = 1 << 23  #: numbers of a gradient that are summed over the ranks at once: 64 MiB in float64


@dataclass
class Pace:
    """How many rows a forward of this rank takes: all of a pass, until memory runs out.

    Then half as many, from that step on; fewer rows in a forward change no job's gradient.
    """

    rows: int | None = None
    tokens: int | None = None  #: from so many on, jobs take turns in a step instead of sharing a forward

    def halve(self, rows: int) -> None:
        self.rows = -(-rows // 2)
        print(f"out of memory with {rows} rows in a forward; from now on at most {self.rows}", flush=True)


@dataclass(frozen=True)
class Part:
    """What one pass of accumulation takes of a job's batch on this rank."""

    examples: list[Example]
    positions: list[int]  #: of the examples in the job's whole batch
    weight: float  #: 0 where this rank has no row of its own left and only keeps the others company

    def cut(self, start: int, stop: int) -> Part:
        return self.only(range(start, min(stop, len(self.examples))))

    def only(self, places: Sequence[int]) -> Part:
        return Part([self.examples[i] for i in places], [self.positions[i] for i in places], self.weight)


@dataclass
class Work:
    """One job's part of a step on this rank."""

    job: TrainedJob
    parts: list[Part]  #: equally many on all ranks: with a sharded base every rank runs every forward
    batch: int  #: rows of the whole batch, on all ranks
    units: int  #: of the whole batch, on all ranks
    tokens: int  #: real tokens of the whole batch
    loss: Tensor | float = 0.0  #: on the device: reading it would wait for the GPU
    unfit: bool = False  #: memory runs out with a single row of this job, here or on another rank

    def restart(self) -> None:
        self.loss, self.unfit = 0.0, False
        for parameter in self.job.parameters:
            parameter.grad = None


Piece = tuple[Work, Part]


@dataclass
class Engine:
    """What all steps of a run share."""

    host: BaseHost
    processes: Processes
    pace: Pace


def fused_step(engine: Engine, jobs: Sequence[TrainedJob], batches: Sequence[list[Example]]) -> list[Work]:
    """Forward, backward and sum over ranks; each job's gradients are left in its parameters' `.grad`.

    When a rank runs out of memory, all ranks do the step again, that one with half the rows in a forward. Any other
    error of a rank is raised on all of them.
    """
    processes = engine.processes
    work = [_work(job, batch, processes) for job, batch in zip(jobs, batches, strict=True)]
    while True:
        rows, fault = 0, None
        try:
            rows = _accumulate_all(engine, work)
        except Exception as error:
            if not may_tell(processes, error):
                raise
            fault = error
        again, broken = _sum_over_ranks(work, processes, full=rows > 0, broken=fault is not None)
        if broken:
            hear(processes.gather(tell(fault)), fault)
        if not again:
            return work
        for w in work:
            w.restart()
        if processes.device.type == "cuda":
            torch.cuda.empty_cache()
        if rows:
            engine.pace.halve(rows)


def _accumulate_all(engine: Engine, work: Sequence[Work]) -> int:
    """All forwards and backwards of this rank; the rows of the forward that ran out of memory, or 0."""
    for which, chunk in _forwards(engine, work):
        fit = [(w, piece) for w, piece in chunk if not w.unfit]
        if not fit or _fits(engine, fit, which):
            continue
        rows = sum(len(piece.examples) for _, piece in fit)
        if rows > 1:
            return rows
        fit[0][0].unfit = True
    return 0


def _forwards(engine: Engine, work: Sequence[Work]) -> Iterator[tuple[tuple[int, int], list[Piece]]]:
    """What the forwards of a step take, one after another: ((pass of accumulation, number), pieces)."""
    for together in _groups(work, engine.pace.tokens):
        for part in range(max(len(w.parts) for w in together)):
            pieces = [(w, w.parts[part]) for w in together if part < len(w.parts)]
            buckets = by_length(pieces) if _pays_for_padding(engine, together) else [pieces]
            chunks = [chunk for bucket in buckets for chunk in _chunks(bucket, engine.pace.rows)]
            for number, chunk in enumerate(chunks):
                yield (part, number), chunk


def _pays_for_padding(engine: Engine, work: Sequence[Work]) -> bool:
    """Whether rows of unlike lengths had better not share a forward.

    With a sharded base all ranks must run equally many forwards; a base's dropout is drawn anew in each.
    """
    sharded = engine.processes.zero == 3 and engine.processes.world > 1
    if not engine.host.fast.buckets or sharded or any(w.job.recipe.train.base_dropout for w in work):
        return False
    return not (engine.host.fast.pack and packs(engine.host))


def by_length(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The rows in lots of like length, longest first: a new lot where it saves enough padding."""
    order = sorted(
        (
            (-_tokens(example), piece, i)
            for piece, (_, part) in enumerate(pieces)
            for i, example in enumerate(part.examples)
        )
    )
    cuts, start = [0], 0
    for i, (length, _, _) in enumerate(order):
        longest = order[start][0]
        if (len(order) - i) * (length - longest) >= TOKENS_WORTH_A_FORWARD and length >= 0.75 * longest:
            cuts.append(i)
            start = i
    lots = []
    for a, b in pairwise([*cuts, len(order)]):
        mine: dict[int, list[int]] = {}
        for _, piece, i in sorted(order[a:b], key=lambda one: one[1:]):
            mine.setdefault(piece, []).append(i)
        lots.append([(pieces[piece][0], pieces[piece][1].only(places)) for piece, places in mine.items()])
    return lots


def _tokens(example: Example) -> int:
    """What others are padded to: of an encoder-decoder row, whose labels stand for themselves, on both sides."""
    row = example.row
    if row.decoder_ids is not None:
        return len(row.ids) + len(row.decoder_ids)
    beside = row.labels is not None and len(row.labels) != len(row.ids)
    return len(row.ids) + (len(row.labels or ()) if beside else 0)


def _fits(engine: Engine, chunk: Sequence[Piece], which: tuple[int, int]) -> bool:
    """One forward and backward; False when memory ran out (the error is let go of here: it holds what was taken)."""
    try:
        _accumulate(engine, chunk, which)
    except Exception as error:
        # With ZeRO-3 the other ranks wait for this one in the middle of a forward: there is no agreeing with them.
        if engine.processes.sharded or not out_of_memory(error):
            raise
        return False
    return True


def _chunks(pieces: Sequence[Piece], most: int | None) -> list[list[Piece]]:
    """The rows of `pieces`, in their order, in as few and as equal lots as `most` rows in each allow."""
    total = sum(len(part.examples) for _, part in pieces)
    if most is None or total <= most:
        return [list(pieces)]
    size = -(-total // -(-total // most))
    chunks: list[list[Piece]] = [[]]
    room = size
    for w, part in pieces:
        start = 0
        while start < len(part.examples):
            if room == 0:
                chunks.append([])
                room = size
            taken = part.cut(start, start + room)
            chunks[-1].append((w, taken))
            start, room = start + len(taken.examples), room - len(taken.examples)
    return chunks


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


def _groups(work: Sequence[Work], tokens: int | None) -> list[list[Work]]:
    """Who shares a forward: as many as have at most `tokens` together, which is the same on all ranks.

    A job that wants the base's dropout is alone: it must not reach its neighbours.
    """
    groups: list[list[Work]] = []
    room = 0.0
    for w in work:
        if w.job.recipe.train.base_dropout:
            continue
        if not groups or w.tokens > room:
            groups.append([])
            room = float("inf") if tokens is None else tokens
        groups[-1].append(w)
        room -= w.tokens
    return groups + [[w] for w in work if w.job.recipe.train.base_dropout]


def _accumulate(engine: Engine, chunk: Sequence[Piece], which: tuple[int, int]) -> None:
    host, processes = engine.host, engine.processes
    device = processes.device
    prompts: list[Prompt] = []
    rows: list[Row] = []
    for w, part in chunk:
        own = _prompts(w.job, part, device)
        rows += [replace(e.row, prompt=len(prompts) + min(i, len(own) - 1)) for i, e in enumerate(part.examples)]
        prompts += own
    batch = RowBatch.collate(rows, pad_id=host.pad_id)  # on the CPU: the forward lays it out without waiting for a GPU
    host.set_checkpointing(any(w.job.recipe.train.gradient_checkpointing for w, _ in chunk))
    with _base_mode(host, chunk[0][0].job, which, processes):  # to the end: a layer may be computed again then
        output = forward(host, batch, prompts, hidden=any(w.job.objective.reads_hidden for w, _ in chunk))
        total = torch.zeros((), device=device)
        losses, first = [], 0
        for w, part in chunk:
            with w.job.randomness(FOR_HEAD, device):
                share = Share.of(output, first, part.positions, w.batch)
                loss = w.job.loss_sum(share, part.examples)
            loss = loss * (part.weight / w.units)
            losses.append(loss.detach().double())
            total = total + loss
            first += len(part.examples)
        total.backward()
    for (w, _), value in zip(chunk, losses, strict=True):
        w.loss = w.loss + value


def _prompts(job: TrainedJob, part: Part, device: torch.device) -> list[Prompt]:
    """One for all rows of the part; with dropout one for each, drawn by its place in the whole batch: whatever rank,
    pass or forward the row falls to, its prompt is the same."""
    with job.randomness(FOR_PROMPT, device):
        prompt = job.method.prompt()
    probability = getattr(job.recipe.method, "dropout", 0.0)
    if probability == 0:
        return [prompt]
    dropped = []
    for position in part.positions:
        with job.randomness(FOR_PROMPT, device, position):
            dropped.append(prompt.dropped(probability))
    return dropped


@contextmanager
def _base_mode(host: BaseHost, job: TrainedJob, which: tuple[int, int], processes: Processes) -> Iterator[None]:
    """The base's own dropout, off unless the job asks for it; every pass and rank draws for itself."""
    if not job.recipe.train.base_dropout:
        yield
        return
    part, chunk = which
    host.set_dropout(True)
    try:
        with job.randomness(FOR_BASE, processes.device, part, processes.rank, *([chunk] if chunk else [])):
            yield
    finally:
        host.set_dropout(False)


def _sum_over_ranks(work: Sequence[Work], processes: Processes, *, full: bool, broken: bool) -> tuple[bool, bool]:
    """All jobs' gradients and losses, in one all-reduce or few; whether any rank's was full, or broke."""
    parameters = [p for w in work for p in w.job.parameters]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if processes.world == 1:
        return full, broken
    told = torch.tensor([float(full), float(broken), *(float(w.unfit) for w in work)], dtype=torch.float64)
    losses = torch.stack([torch.as_tensor(w.loss, dtype=torch.float64, device=processes.device) for w in work])
    *buckets, last = _buckets(parameters)
    for bucket in buckets:
        _sum_bucket(bucket, processes)
    anybody_full, anybody_broken, *rest = _sum_bucket(last, processes, told.to(processes.device), losses).tolist()
    for number, w in enumerate(work):
        w.unfit, w.loss = rest[number] > 0, rest[len(work) + number]
    return anybody_full > 0, anybody_broken > 0


def _buckets(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """Flat views of all gradients, in lists of at most `BUCKET` numbers each; one list at least.

    Prompts are one bucket. A whole base in float64 would take eight bytes a weight, twice, on several GPUs only.
    """
    found: list[list[Tensor]] = [[]]
    room = BUCKET
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad = parameter.grad.contiguous()
        for piece in parameter.grad.view(-1).split(BUCKET):
            if piece.numel() > room:
                found.append([])
                room = BUCKET
            found[-1].append(piece)
            room -= piece.numel()
    return found


def _sum_bucket(bucket: Sequence[Tensor], processes: Processes, *more: Tensor) -> Tensor:
    """Replace each piece by its sum over all ranks, computed in float64; the sum of `more`."""
    flat = torch.cat([piece.to(torch.float64) for piece in (*bucket, *more)])
    processes.sum_(flat)
    at = 0
    for piece in bucket:
        piece.copy_(flat[at : at + piece.numel()])
        at += piece.numel()
    return flat[at:]
