"""Measure what a step costs on the base and device at hand: a ladder of forwards and backwards, a second or two.

Every point is one step of a job that trains one virtual token, on rows of arbitrary tokens. Time is the least of a few
repetitions. Memory is what the allocator held at its peak on a GPU. On a CPU the process's resident size says little
(freed pages stay with the allocator), so there the tensors that autograd keeps for the backward are counted, which is
exact. No random number is drawn and no parameter of the base is touched: what is trained later is the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from orchestrator.cost import Cost
from orchestrator.training.distributed import Processes
from orchestrator.training.failures import met_by_all, out_of_memory
from orchestrator.tuning.forward import forward
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.prompt import Prompt
from orchestrator.tuning.rows import NO_LABEL, Row, RowBatch

SECONDS = 0.5  #: for the ladder on a CPU
SECONDS_GPU = 3.0
ROW = 64  #: tokens of a row, or what half the base's context holds
REPEATS = 3
AGREE = 0.1  #: the two least times of a point differ by less, or it is repeated: whoever else computes disturbs one
MOST_REPEATS = 12
PATIENCE = 10  #: times those seconds; then the machine is too busy, or the base too slow, to be measured at all
SETTLED = 0.1  #: two pieces of the curve whose slopes differ by less: it goes on like that
SHARDED_TOKENS = 4096  #: with ZeRO-3 no rank can run out of memory alone, so the ladder ends early


@dataclass(frozen=True)
class Point:
    """Rows of these lengths, shared among `jobs`, with labels at the last `labels` positions of each."""

    lengths: tuple[int, ...]
    jobs: int = 1
    labels: int = 1

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True)
class Measured:
    seconds: float
    bytes: float


class TooBusy(Exception):
    """Figures from here would say more about whoever else computes now than about the base."""


def calibrate(host: BaseHost, processes: Processes, *, context: int | None) -> Cost:
    """The same figures on all ranks: those of the slowest. `context`: positions that the base has."""
    probe = _Probe(host, processes)
    row = min(ROW, max(2, (context or 2 * ROW) // 2))
    probe.warm_up(Point((row,)))  # what is set up once is no step's cost
    short, curve = _ladder(probe, row)
    several = probe.measure(Point((row,) * 4, jobs=4), memory=False)
    one = probe.measure(Point((row,) * 4))
    labelled = probe.measure(Point((row,) * 4, labels=row - 1))
    ragged = probe.measure(Point((row, *(8,) * 7)), memory=False)
    # At most what would leave the base itself a fifth of the shortest step: a disturbed measurement is no cost.
    job = min(max(0.0, several.seconds - one.seconds) / 3, 0.8 * probe.seconds(short))
    labels = 4 * (row - 2)
    (t0, s0), (t1, s1) = curve[-2], curve[-1]
    slope = (s1.seconds - s0.seconds) / (t1 - t0)
    padding = (ragged.seconds - _at(curve, row + 56)) / (8 * row - row - 56)
    token_bytes = (s1.bytes - s0.bytes) / (t1 - t0)
    points = [(1.0 * short.tokens, probe.seconds(short) - job), *((1.0 * t, s.seconds - job) for t, s in curve)]
    return Cost(
        curve=_rising(points),
        job_seconds=job,
        label_seconds=max(0.0, labelled.seconds - one.seconds) / labels,
        # A third of what a real token costs is more than two measurements of the same differ by.
        padding_seconds=padding if padding > slope / 3 else 0.0,
        weight_bytes=_weight_bytes(host),
        token_bytes=max(0.0, token_bytes),
        label_bytes=max(0.0, labelled.bytes - one.bytes) / labels,
        capacity_bytes=_capacity(processes),
    )


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _ladder(probe: _Probe, row: int) -> tuple[Point, list[tuple[int, Measured]]]:
    """Four times as many rows each time, until the curve is straight, time is over or memory ends; two at least."""
    short = Point((min(8, row),))
    probe.measure(short, memory=False)
    found: list[tuple[int, Measured]] = []
    rows = 1
    while True:
        try:
            found.append((rows * row, probe.measure(Point((row,) * rows))))
        except Exception as error:
            if not out_of_memory(error) or probe.sharded or len(found) < 2:
                raise
            return short, found
        rows *= 4
        next_one = 4 * REPEATS * found[-1][1].seconds
        over = probe.spent + next_one > probe.budget or (probe.sharded and rows * row > SHARDED_TOKENS)
        if len(found) >= 2 and probe.anybody(over or _is_straight(found)):
            return short, found


def _is_straight(found: Sequence[tuple[int, Measured]]) -> bool:
    if len(found) < 3:
        return False
    (t0, s0), (t1, s1), (t2, s2) = found[-3:]
    before, after = (s1.seconds - s0.seconds) / (t1 - t0), (s2.seconds - s1.seconds) / (t2 - t1)
    return abs(after - before) <= SETTLED * max(after, before)


def _at(curve: Sequence[tuple[int, Measured]], tokens: int) -> float:
    (t0, s0), (t1, s1) = curve[0], curve[1]
    return s0.seconds + (s1.seconds - s0.seconds) * (tokens - t0) / (t1 - t0)


def _rising(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """More tokens never take less time; what was measured otherwise was disturbed."""
    made: list[tuple[float, float]] = []
    for tokens, seconds in sorted(points):
        made.append((tokens, max(seconds, made[-1][1] if made else 1e-6)))
    return tuple(made)


@dataclass
class _Probe:
    """Runs points on all ranks alike and keeps what was measured."""

    host: BaseHost
    processes: Processes
    found: dict[Point, Measured] = field(default_factory=dict)
    begun: float = field(default_factory=lambda: time.monotonic())

    @property
    def spent(self) -> float:
        return time.monotonic() - self.begun

    @property
    def budget(self) -> float:
        return SECONDS_GPU if self.device.type == "cuda" else SECONDS

    @property
    def device(self) -> torch.device:
        return self.processes.device

    @property
    def sharded(self) -> bool:
        return self.processes.zero == 3

    def anybody(self, answer: bool) -> bool:
        return any(self.processes.gather(answer))

    def seconds(self, point: Point) -> float:
        return self.found[point].seconds

    def measure(self, point: Point, *, memory: bool = True) -> Measured:
        """Until two times agree, while there is time; with several ranks always as often.

        What one of several ranks meets, for example that its memory ends, all of them raise.
        """
        if self.anybody(self.spent > PATIENCE * self.budget):
            raise TooBusy(f"it would take longer than {PATIENCE * self.budget:g} s")
        with met_by_all(self.processes, forwards=True):
            kept = self._kept(point) if memory else 0.0
            times = [self._timed(point)]
            while not self._enough(times):
                times.append(self._timed(point))
        told = self.processes.gather((min(times), kept))
        self.found[point] = Measured(max(s for s, _ in told), max(b for _, b in told))
        return self.found[point]

    def _enough(self, times: Sequence[float]) -> bool:
        if self.processes.world > 1:
            return len(times) >= REPEATS
        if len(times) >= 2 and self.spent > self.budget:
            return True
        least, second, *_ = [*sorted(times), math.inf]
        return len(times) >= MOST_REPEATS or (len(times) >= REPEATS and second - least <= AGREE * least)

    def warm_up(self, point: Point) -> None:
        with met_by_all(self.processes, forwards=True):
            self.run(point)

    def run(self, point: Point) -> None:
        """One step: forward, loss, backward, and an optimizer's step for each job."""
        prompts = [torch.zeros(1, self.host.embedding_width, device=self.device) for _ in range(point.jobs)]
        for prompt in prompts:
            prompt.requires_grad_(True)
        batch = RowBatch.collate(self._rows(point), pad_id=self.host.pad_id)
        hidden = not self.host.has_lm_head
        output = forward(self.host, batch, [Prompt(embeddings=prompt) for prompt in prompts], hidden=hidden)
        losses = []
        for number in range(point.jobs):
            # By slices, as a step takes them: a mask would wait for the GPU, which no step does.
            mine = [slice(*output.starts[row : row + 2]) for row in range(number, len(batch), point.jobs)]
            logits, labels = (torch.cat([lines[part] for part in mine]) for lines in (output.logits, output.labels))
            losses.append(cross_entropy(logits.float(), labels) if len(logits) else logits.sum())
        total = torch.stack(losses).sum()
        if output.hidden is not None:
            total = total + output.hidden.float().mean()
        total.backward()
        for prompt in prompts:
            torch.optim.AdamW([prompt]).step()

    def _rows(self, point: Point) -> list[Row]:
        made = []
        for number, length in enumerate(point.lengths):
            ids = [-1, *((7 * number + 3 * i) % self.host.vocab_size for i in range(length - 1))]
            labels: list[int] | None = [NO_LABEL] * (length - point.labels) + [0] * point.labels
            if self.host.kind == "seq2seq":
                labels = [0] * point.labels
            if not self.host.has_lm_head:
                labels = None
            made.append(Row(ids=ids, labels=labels, prompt=number % point.jobs))
        return made

    def _kept(self, point: Point) -> float:
        with self._bytes() as count:
            self.run(point)
        return count()

    def _timed(self, point: Point) -> float:
        self._wait()
        begun = time.perf_counter()
        self.run(point)
        self._wait()
        return time.perf_counter() - begun

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def _bytes(self) -> Iterator[Callable[[], float]]:
        """What a step in this context holds at its peak beside the weights."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            yield lambda: float(torch.cuda.max_memory_allocated(self.device) - before)
            return
        weights = {tensor.untyped_storage().data_ptr() for tensor in self.host.model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield lambda: float(sum(kept.values()))


def _weight_bytes(host: BaseHost) -> float:
    """Of this rank: with ZeRO-3 its shards."""
    tensors = [getattr(tensor, "ds_tensor", tensor) for tensor in host.model.parameters()]
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def _capacity(processes: Processes) -> float:
    """Bytes of the GPU; on a CPU the machine's memory in the proportion of the cores that this process has."""
    if processes.device.type == "cuda":
        return float(torch.cuda.get_device_properties(processes.device).total_memory)
    share = min(1.0, torch.get_num_threads() / (psutil.cpu_count() or 1))
    return float(psutil.virtual_memory().total * share)
