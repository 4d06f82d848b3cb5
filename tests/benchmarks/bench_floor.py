"""What a step cannot do without: the FLOPs and bytes of an exact one, and how fast this machine does either."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from orchestrator.tuning.packing import Line
from orchestrator.tuning.rows import Row, RowBatch
from tests.benchmarks.bench_others import counted, kind_of, lengths_of, numbers_of
from tests.benchmarks.bench_world import BASES, GPU_BASES, Shape, World

#: Of matrix products; on a GPU each side is 8 times as long.
PRODUCTS = ((512, 128, 512), (2048, 768, 3072), (4096, 1024, 1024))
NUMBERS = {"cpu": 1 << 26, "cuda": 1 << 30}  #: that are read: more than any cache holds


def matmul_peak(threads: int, device: str, dtype: str) -> float:
    """FLOP/s of the best matrix product among several shapes, measured here."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    torch.set_num_threads(threads)
    best = 0.0
    for rows, inner, columns in PRODUCTS:
        size = 8 if device == "cuda" else 1
        a = torch.randn(rows * size, inner * size, dtype=kind, device=device)
        b = torch.randn(inner * size, columns * size, dtype=kind, device=device)
        for _ in range(8):
            _wait(device)
            started = time.perf_counter()
            a @ b
            _wait(device)
            flops = 2 * a.shape[0] * a.shape[1] * b.shape[1]
            best = max(best, flops / (time.perf_counter() - started))
        del a, b
    _let_go(device)
    return best


def bandwidth(threads: int, device: str) -> float:
    """Bytes/s at which a tensor larger than any cache is read, measured here."""
    torch.set_num_threads(threads)
    data = torch.ones(NUMBERS[device], dtype=torch.float32, device=device)
    best = 0.0
    for _ in range(5):
        _wait(device)
        started = time.perf_counter()
        data.sum()
        _wait(device)
        best = max(best, data.numel() * data.element_size() / (time.perf_counter() - started))
    del data
    _let_go(device)
    return best


@dataclass(frozen=True)
class Work:
    """What one job's steps hold on average."""

    real: float  #: tokens with the prompt once and nothing behind the last label
    packed: float  #: tokens that ptq runs through the layers
    padded: float  #: tokens that PEFT does
    flops: float  #: that an exact step cannot do without
    weights: float  #: numbers of the base that a forward reads, and a backward again

    def floor(self, jobs: int, flops: float, numbers: float) -> float:
        """Seconds of a step of so many jobs at `flops` and `numbers` a second; the weights are read once for all."""
        return max(jobs * self.flops / flops, 2 * self.weights / numbers)


def work_of(world: World, shape: Shape) -> Work:
    """Counted from the rows of the first job's steps, with the code that lays them out."""
    lines = (world.rows(shape.base, shape.tokens) / "train.jsonl").read_text(encoding="utf-8").splitlines()
    kind = kind_of(shape.base)
    lengths = [lengths_of(kind, len(row["text"].split()), len(row["target"].split())) for row in map(json.loads, lines)]
    spec = json.loads(world.peft_spec(world.root, shape, 0, threads=1, device="cpu").read_text(encoding="utf-8"))
    found = [_counted([lengths[i] for i in numbers], shape) for numbers in spec["order"]]
    means = [sum(column) / len(found) for column in zip(*found, strict=True)]
    if kind != "causal":
        return Work(*means, weights=numbers_of(shape.base))
    vocabulary, width, _, linear, _ = _sizes(shape.base)
    return Work(*means, weights=linear + vocabulary * width)


def _counted(lengths: Sequence[tuple[int, int]], shape: Shape) -> tuple[float, float, float, float]:
    deep = shape.method == "prefix-tuning"  # keys and values are there already: no layer works on the prompt
    if kind_of(shape.base) != "causal":
        return counted(shape.base, lengths, shape.length, deep=deep)
    n = 0 if deep else shape.length
    front = [-j - 1 for j in range(n)]
    # Words differ between rows, so that nothing but the prompt is shared.
    rows = [Row([*front, *[10 + i] * (a + b)], [-100] * (n + a) + [10 + i] * b, 0) for i, (a, b) in enumerate(lengths)]
    prefixes = [shape.length if deep else 0]
    line = Line.of(RowBatch.collate(rows, pad_id=0).trimmed(), prefixes, causal=True, share=True)
    tokens = [a + b - 1 for a, b in lengths]
    real = n + sum(tokens)
    padded = len(rows) * (n + max(a + b for a, b in lengths))
    pairs = n * (n + 1) / 2 + sum(s * shape.length + s * (s + 1) / 2 for s in tokens)
    vocabulary, width, layers, linear, attended = _sizes(shape.base)
    floor = 4 * linear * real + 12 * attended * layers * pairs + 4 * vocabulary * width * sum(b for _, b in lengths)
    return real, len(line.ids), padded, floor


def _sizes(base: str) -> tuple[int, int, int, int, int]:
    """V, H, L, numbers in the layers' matrices, width of the queries."""
    if base in BASES:
        vocabulary, width, layers, _ = BASES[base]
        return vocabulary, width, layers, 12 * width * width * layers, width
    vocabulary, width, layers, heads, key_heads, inner = GPU_BASES[base]
    attention = 2 * width * width + 2 * width * width * key_heads // heads
    return vocabulary, width, layers, layers * (attention + 3 * width * inner), width


def _let_go(device: str) -> None:
    """The programs that are measured want the card's memory; torch would keep it for this one."""
    if device == "cuda":
        torch.cuda.empty_cache()


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
