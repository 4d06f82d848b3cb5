"""The page of the speed benchmark, from what was measured."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch

from orchestrator.training.environment import hardware
from orchestrator.tuning.fast import Fast
from tests.benchmarks.bench_floor import Work
from tests.benchmarks.bench_others import kind_of
from tests.benchmarks.report import conditions

Row = Mapping[str, Any]
#: Between these two lines of README.md and docs/explanation/fused-runs.md stands what the page says in short.
FIGURES, END = "<!-- written by make bench -->", "<!-- until here -->"


def parts_of(device: str, base: str) -> list[str]:
    """What can be turned off on this device and does something on this base: `buckets` where it pads, others where it
    packs."""
    if kind_of(base) == "seq2seq":
        return ["labels", "buckets", "together"]
    others = {"buckets"} if device == "cuda" else {"buckets", "varlen"}
    return [field.name for field in fields(Fast) if field.name not in others]


def _parts(rows: Sequence[Row], device: str) -> list[str]:
    """Of any of the rows, in their order in `Fast`."""
    named = {part for row in rows for part in parts_of(device, row["shape"]["base"])}
    return [field.name for field in fields(Fast) if field.name in named]


#: What a part does nothing without.
NEEDED = {"share": ("pack",), "once": ("pack", "share"), "varlen": ("pack",)}


def only(part: str) -> str:
    """The name of the variant with this part alone, and what it needs."""
    return f"only {part}"


def page(rows: Sequence[Row], parts: Sequence[Row], limits: Row, *, threads: int, device: str) -> str:
    alone, many, deep, both_ways = _sorted(rows)
    peaks = ", ".join(f"{flops / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, flops in limits["flops"].items())
    where = conditions()
    if device == "cuda":
        here = hardware(device, 1)
        card = f"{torch.cuda.get_device_name()}, CUDA {here['cuda']}, driver {here['driver']}"
        where = where.replace("no GPU", card)
    text = f"""# Against PEFT

The same prompt-tuning jobs (same random base, rows, order, start, AdamW, linear schedule, clip 1.0) as a user of PEFT
and accelerate trains them, padded by batch, and through ptq's training program. Rows have half to one and a half times
`tokens` tokens, a quarter of them the target; {_BATCH[device]}. {threads} threads. `losses`: the largest
relative difference of a job's last loss. The floor: what an exact step needs (prompt once, no padding, logits at labels
only) where the machine does the best it showed in this run: matrix products {peaks}, memory
{limits["bandwidth"] / 1e9:.1f} GB/s; the weights are read once in the forward and once in the backward. Tokens are real
ones, of ptq: neither padding nor repeated prompts. A program's memory is {_MEMORY[device]}.
Ratios above 1: ptq is better.
"""
    if alone and many:
        text += f"\n## In short\n{summary(rows)}\n"
    if alone:
        text += f"\n## One job\n{_means(alone)}\n\n{_alone_table(alone, limits)}\n"
    if many:
        text += f"\n## Several jobs\n{_SEVERAL}\n\n{_many_table(many, alone, limits)}\n"
    if deep:
        text += f"\n## Prefix tuning\n{_DEEP}\n\n{_many_table(deep, deep, limits)}\n"
    if both_ways:
        text += f"\n## Bases that look both ways\n{_BOTH_WAYS}\n\n{_many_table(both_ways, both_ways, limits)}\n"
    if parts:
        text += f"\n## What each part is worth\n{_WORTH}\n\n{_parts_table(parts, _parts(parts, device))}\n"
    packing = [row for row in parts if kind_of(row["shape"]["base"]) == "causal"]
    if any(only("labels") in row["seconds"] for row in packing):
        text += f"\n{_ONLY}\n\n{_only_table(packing, _parts(packing, device))}\n"
    return text + f"\n{where} Made by `make bench{'' if device == 'cpu' else '-gpu'}`.\n"


_BATCH = {"cpu": "8 rows a step, 4 at 512 tokens", "cuda": "8 rows a step"}
_MEMORY = {"cpu": "the largest resident size that it ever had", "cuda": "the most that torch's allocator ever held"}

_SEVERAL = """\
PEFT one after another, and side by side as k processes that share the cores. A step is a step of all jobs. Where
fewer jobs than k were run one after another (`PEFT ran`), the total is theirs times k over their number: all have as
many rows and steps. Side by side is not run where k processes do not fit into memory (-)."""

_DEEP = """\
Keys and values of every layer, without a network, from the same start. PEFT's prefix takes no part in the layers
either, but is repeated for every row."""

_BOTH_WAYS = """\
The T5 writes the target, the BERT fills in the word behind the text, over its whole vocabulary. No position of a prompt
is the same in two rows here, so nothing of it is shared; the BERT's rows are packed, the T5's padded. Prefix tuning of
a T5 is not compared: PEFT's prefix stands before the decoder alone, ptq's before the encoder too."""

_ONLY = """\
And how many times less a step takes with one part alone (and those that it does nothing without) than with none:"""

_WORTH = """\
Time of a step without it, relative to the step with everything; the last column without any. The parts are named
in `tuning/fast.py`; - where a part does nothing on that base."""


def summary(rows: Sequence[Row]) -> str:
    """What docs/explanation/fused-runs.md says of these figures."""
    alone, many, _, _ = _sorted(rows)
    ratios = [by_step(row) for row in alone]
    lines = [
        f"- One job's step takes {min(ratios):.2f} to {max(ratios):.2f} times less than with PEFT, "
        f"{geometric_mean(ratios):.2f} times as the geometric mean over {len(alone)} shapes."
    ]
    one = {_where(row): row["ptq"]["bytes"] for row in alone}
    for row in many:
        base, n, tokens, jobs = _head(row, "jobs")
        whole, beside, first = row["peft"]["seconds"] / row["ptq"]["seconds"], row["beside"], one.get(_where(row))
        parts = [f"with start-up {whole:.2f} times less than PEFT one after another", f"by step {by_step(row):.2f}"]
        if beside is not None:
            ratio = beside["seconds"] / row["ptq"]["seconds"]
            parts.append(f"{ratio:.2f} times less than {jobs} PEFT processes side by side")
        if first is not None:
            parts.append(f"{row['ptq']['bytes'] / first:.2f} times the memory of one job")
        lines.append(f"- {jobs} jobs on the {base} base (n {n}, {tokens} tokens a row): {', '.join(parts)}.")
    return "\n".join(lines)


def headline(page: str) -> str:
    """What README.md says, from a page's lines on the most jobs together."""
    line = r"^- (\d+) jobs on .*? with start-up ([\d.]+) times less than PEFT one after another"
    found = [(int(jobs), float(ratio)) for jobs, ratio in re.findall(line, page, re.MULTILINE)]
    jobs = max(jobs for jobs, _ in found)
    ratios = [f"{ratio:.1f}" for ratio in sorted(ratio for count, ratio in found if count == jobs)]
    times = " to ".join(dict.fromkeys([ratios[0], ratios[-1]]))
    return f"""\
- **Many jobs on one base in one forward**, each [exactly as if alone](docs/results/isolation.md), on one copy of
  the base: {jobs} small jobs on two CPU cores take {times} times less time, with start-up, than
  [PEFT takes](docs/results/bench.md) for them one after another."""


def with_figures(explanation: str, figures: str) -> str:
    """The explanation, or README.md, with these figures between its two marks."""
    before, rest = explanation.split(FIGURES)
    return f"{before}{FIGURES}\n{figures}\n{END}{rest.split(END)[1]}"


def difference(row: Row) -> float:
    """The largest relative difference of a job's last loss."""
    # ptq's run holds all jobs, PEFT may have run fewer of them.
    return max(abs(a - b) / abs(b) for a, b in zip(row["ptq"]["losses"], row["peft"]["losses"], strict=False))


def by_step(row: Row) -> float:
    return float(row["peft"]["step"] / row["ptq"]["step"])


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _sorted(rows: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row], list[Row]]:
    """Prompt tuning by one job and by several; prefix tuning; bases that look both ways."""
    both_ways = [row for row in rows if kind_of(row["shape"]["base"]) != "causal"]
    deep = [row for row in rows if row["shape"]["method"] != "prompt-tuning" and row not in both_ways]
    rest = [row for row in rows if row not in deep and row not in both_ways]
    alone = [row for row in rest if row["shape"]["jobs"] == 1]
    return alone, [row for row in rest if row["shape"]["jobs"] > 1], deep, both_ways


def _means(rows: Sequence[Row]) -> str:
    ratios = [by_step(row) for row in rows]
    whole = [row["peft"]["seconds"] / row["ptq"]["seconds"] for row in rows]
    steps = (
        f"Geometric mean of the ratios of steps: **{geometric_mean(ratios):.2f}**; the smallest: **{min(ratios):.2f}**."
    )
    return f"{steps} With start-up: {geometric_mean(whole):.2f}; the smallest: {min(whole):.2f}."


def _alone_table(rows: Sequence[Row], limits: Row) -> str:
    columns = ["base", "n", "tokens", "steps", *_PAIR, "tokens/s", "MB, PEFT / ptq", *_TAIL]
    lines = []
    for row in rows:
        memory = f"{_mb(row['peft']['bytes'])} / {_mb(row['ptq']['bytes'])}"
        lines.append([*_head(row, "steps"), *_pair(row), _speed(row), memory, *_tail(row, limits)])
    return _table(columns, lines)


def _many_table(rows: Sequence[Row], alone: Sequence[Row], limits: Row) -> str:
    """With a column for the method where it is not everywhere the same."""
    methods = len({row["shape"]["method"] for row in rows}) > 1
    side = ["PEFT ran", "s side by side", "ratio to ptq"]
    memory = ["MB, ptq: one job / all", "ratio", "MB, PEFT: one / side by side"]
    columns = ["base", "n", "tokens", "k", "steps", *_PAIR, *side, "tokens/s", *memory, *_TAIL]
    columns = [*(["method"] if methods else []), *columns]
    one = {_where(row): row["ptq"]["bytes"] for row in alone}
    lines = []
    for row in rows:
        beside, first = row["beside"], one.get(_where(row))
        sides = ["-", "-"]
        if beside is not None:
            sides = [f"{beside['seconds']:.1f}", f"**{beside['seconds'] / row['ptq']['seconds']:.2f}**"]
        taken = row["ptq"]["bytes"]
        held = [f"{_mb(first)} / {_mb(taken)}", "-" if first is None else f"**{taken / first:.2f}**"]
        held.append(f"{_mb(row['peft']['bytes'])} / {_mb(beside and beside['bytes'])}")
        ran = str(len(row["peft"]["losses"]))
        head = [*([row["shape"]["method"]] if methods else []), *_head(row, "jobs", "steps")]
        lines.append([*head, *_pair(row), ran, *sides, _speed(row), *held, *_tail(row, limits)])
    return _table(columns, lines)


def _parts_table(rows: Sequence[Row], parts: Sequence[str]) -> str:
    columns = ["method", "base", "n", "tokens", "k", "ms, everything", *(f"no {part}" for part in parts), "none"]
    lines = []
    for row in rows:
        found = row["seconds"]
        worth = [f"{found[part] / found['all']:.2f}" if part in found else "-" for part in parts]
        lines.append(
            [
                row["shape"]["method"],
                *_head(row, "jobs"),
                f"{1000 * found['all']:.0f}",
                *worth,
                f"**{found['none'] / found['all']:.2f}**",
            ]
        )
    return _table(columns, lines)


def _only_table(rows: Sequence[Row], parts: Sequence[str]) -> str:
    columns = ["method", "base", "n", "tokens", "ms, none", *parts, "everything"]
    lines = []
    for row in rows:
        found = row["seconds"]
        if only(parts[0]) in found:
            worth = [f"{found['none'] / found[only(part)]:.2f}" for part in parts]
            whole = f"**{found['none'] / found['all']:.2f}**"
            lines.append([row["shape"]["method"], *_head(row), f"{1000 * found['none']:.0f}", *worth, whole])
    return _table(columns, lines)


_PAIR = ["ms a step, PEFT / ptq", "ratio", "s with start-up, PEFT / ptq", "ratio"]
_TAIL = ["of the floor, PEFT / ptq", "executed / real tokens, PEFT / ptq", "losses"]


def _where(row: Row) -> tuple[Any, ...]:
    return tuple(row["shape"][name] for name in ("base", "length", "tokens", "dtype", "method"))


def _head(row: Row, *more: str) -> list[str]:
    return [str(row["shape"][name]) for name in ("base", "length", "tokens", *more)]


def _pair(row: Row) -> list[str]:
    mine, theirs = row["ptq"], row["peft"]
    return [
        f"{1000 * theirs['step']:.0f} / {1000 * mine['step']:.0f}",
        f"**{by_step(row):.2f}**",
        f"{theirs['seconds']:.1f} / {mine['seconds']:.1f}",
        f"**{theirs['seconds'] / mine['seconds']:.2f}**",
    ]


def _mb(taken: float | None) -> str:
    return "-" if taken is None else f"{taken / (1 << 20):.0f}"


def _speed(row: Row) -> str:
    return f"{row['shape']['jobs'] * row['work']['real'] / row['ptq']['step']:,.0f}"


def _tail(row: Row, limits: Row) -> list[str]:
    work, jobs, dtype = Work(**row["work"]), row["shape"]["jobs"], row["shape"]["dtype"]
    numbers = limits["bandwidth"] / {"fp32": 4, "bf16": 2}[dtype]
    floor = work.floor(jobs, limits["flops"][dtype], numbers)
    return [
        f"{100 * floor / row['peft']['step']:.0f} / {100 * floor / row['ptq']['step']:.0f} %",
        f"{work.padded / work.real:.2f} / {work.packed / work.real:.2f}",
        f"{difference(row):.0e}",
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
