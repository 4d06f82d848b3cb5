"""Jobs that come and go beside others against the same jobs alone: how far losses, prompts and checkpoints differ.

make proof-isolation
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.report import REPOSITORY, write_page

sys.path.insert(0, str(REPOSITORY / "tests"))

import every_method
import isolation
from isolation import Difference, Stage, difference, odd, play_odd, precision
from matrix import MODELS, saved
from processes import launch_scripted
from training_fixtures import KINDS, MadeRun, make_base, make_run, recipe
from wide_training import wide_command

from orchestrator.dispatch.running.launcher import training_command

SEEDS = (1, 2, 3)
GOALS = {"fp64": 1e-9, "fp32": 1e-6}  #: of losses
#: What is unlike other bases -> (its class, changes of its configuration).
ODD: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2, head of its own": ("GPT-2", {"tie_word_embeddings": False}),
    "Llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "Mistral, windows of 5": ("Mistral", {"sliding_window": 5}),
    "Gemma 3, windows of 6": ("Gemma 3", {"sliding_window": 6}),
    "ALBERT, shared layers": ("ALBERT", {"hidden_dropout_prob": 0.1}),
    "BART": ("BART", {"dropout": 0.1}),
    "T5 v1.1": ("T5 v1.1", {}),
    "Phi-3, LongRoPE from 10 tokens on": ("Phi-3", {
        "original_max_position_embeddings": 9,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 5.0, 9],
        },
    }),
}  # fmt: skip
ODD_GOAL = 3e-6
#: kind of base -> jobs
CASTS: dict[str, Callable[[str], list[dict[str, Any]]]] = {"mixed": isolation.mixed, "every": every_method.every}
HUGE = {"fp32": 1e37, "fp64": 1e307}  #: rates whose sums are infinite
#: (base, precision, ZeRO stage). DeepSpeed makes every weight of a sharded base fp32 or narrower as it comes.
RANKS: list[tuple[str, str, int | None]] = [
    *((name, dtype, None) for name in KINDS for dtype in ("fp64", "fp32")),
    *((name, "fp32", 3) for name in KINDS),
]


def main() -> int:
    rows: list[list[str]] = []
    worst = dict.fromkeys([*GOALS, "odd"], 0.0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        dataset = every_method.make_rows(root / "data")
        bases = {name: make_base(root / name, name) for name in KINDS}
        for name, base in bases.items():
            for dtype, cast in itertools.product(GOALS, CASTS):
                found = _in_one_process(root / f"{name}-{dtype}-{cast}", name, base, dataset, dtype, CASTS[cast])
                rows += _rows(f"one process, {name}, {dtype}, {len(SEEDS)} plays", found)
                worst[dtype] = max(worst[dtype], *(one.loss for _, one in found))
        for name in ODD:
            for dtype in GOALS:
                found = _on_odd_base(root, name, dataset, dtype)
                rows += _rows(f"one process, {name}, {dtype}", found)
                worst["odd"] = max(worst["odd"], *(one.loss for _, one in found))
        rows += _in_bf16(root, dataset)
        rows += _beside_itself(root, "GPT-2, head of its own", dataset, "bf16")
        rows += _beside_itself(root, "T5 v1.1", dataset, "fp32")
        for name, dtype, zero in RANKS:
            layout = "DDP" if zero is None else f"ZeRO-{zero}"
            found = _on_two_ranks(root / f"{layout}-{name}-{dtype}", name, bases[name], dataset, dtype, zero)
            rows += _rows(f"two processes, {layout}, {name}, {dtype}", found)
            worst[dtype] = max(worst[dtype], *(one.loss for _, one in found))
    text = (
        "Small random bases. Every method and task that may share a run is among the jobs. In each play jobs of unlike "
        "methods, lengths, batches, optimizers and steps start together or join at random steps; one goes NaN, one is "
        "cancelled, and one is preempted and goes on in another run beside a stranger. Every job that came to its end "
        "is compared with the same job alone in one process: the same steps, the same checkpoints at the same steps, "
        "the same metrics (or the proof stops), and the largest difference of any loss (relative; of learned "
        "probabilities absolute, for a divergence goes to 0), and of any number of the prompt and of the "
        "checkpoints with their optimizer's moments (relative to the largest of its tensor). The goal is "
        f"{GOALS['fp32']:g} for losses in fp32, {GOALS['fp64']:g} in fp64; on the bases that are unlike others "
        f"{ODD_GOAL:g} (some compute norms or angles in fp32 whatever they are loaded in). What is more in prompts "
        "and moments is the rounding of the base's forward, made larger by an LSTM, or by an optimizer that divides by "
        "small gradients: in fp64 it is as much smaller as fp64 is finer. Every job has its network by itself, in "
        "company as alone. The last rows are the yardstick: a job alone against itself alone, with its rows worked "
        "through in two parts; in company it comes as near to itself."
    )
    columns = ["where", "job", "losses", "prompt", "checkpoints"]
    write_page("isolation", "Jobs in company and alone", "make proof-isolation", text, columns, rows)
    return 0 if all(worst[what] <= goal for what, goal in {**GOALS, "odd": ODD_GOAL}.items()) else 1


Found = list[tuple[str, Difference]]
Cast = Callable[[str], list[dict[str, Any]]]


def _rows(where: str, found: Found) -> list[list[str]]:
    """The worst of each job over all plays."""
    made = []
    for name in dict.fromkeys(name for name, _ in found):
        mine = [one for other, one in found if other == name]
        worst = [max(values) for values in zip(*((d.loss, d.prompt, d.checkpoint) for d in mine), strict=True)]
        made.append([where, name, *(f"{value:.1e}" for value in worst)])
        print(made[-1], flush=True)
    return made


def _in_one_process(root: Path, name: str, base: Path, dataset: Path, dtype: str, cast: Cast) -> Found:
    kind, jobs = KINDS[name], cast(KINDS[name])
    found: Found = []
    with precision(dtype):
        solos = isolation.alone(root, kind, base, dataset, jobs)
        for seed in SEEDS:
            for job, run, number, attempt in isolation.play(root / str(seed), kind, base, dataset, seed, jobs):
                first = attempt == 2
                called = job if first else isolation.called(jobs[number])
                found.append((called, difference(run, number, solos[0] if first else solos[number], attempt)))
    return found


def _on_odd_base(root: Path, name: str, dataset: Path, dtype: str) -> Found:
    """A cast whose jobs have settings that their neighbours do not have."""
    model, changes = ODD[name]
    kind = saved(root / name, model, **changes)
    with precision(dtype):
        return list(play_odd(root / f"{name}-{dtype}", kind, root / name, dataset))


def _in_bf16(root: Path, dataset: Path) -> list[list[str]]:
    base = root / "GPT-2, head of its own"
    found = list(play_odd(root / "bf16", "causal", base, dataset, "bf16"))
    return _rows("one process, gpt2, bf16", found)


def _beside_itself(root: Path, name: str, dataset: Path, dtype: str) -> list[list[str]]:
    """Each job alone, against itself alone with its rows in other parts: what rounding does to it anyway."""
    kind, found = MODELS[ODD[name][0]][0], []
    for number, one in enumerate(odd(kind)[:-1]):
        runs = []
        for parts in (1, 2):
            train = {**one["train"], "accumulation": parts}
            job = {**one, "base": {"model": "tiny", "dtype": dtype}, "train": train}
            folder = root / f"itself-{name}-{dtype}-{number}-{parts}"
            runs.append(make_run(folder, [job], base=root / name, dataset=dataset, kind=kind))
            assert runs[-1].train() == 0
        found.append((one["method"]["type"], difference(runs[0], 0, runs[1])))
    return _rows(f"alone, {name}, {dtype}, rows in one part and in two", found)


def _on_two_ranks(root: Path, name: str, base: Path, dataset: Path, dtype: str, zero: int | None) -> Found:
    """Evaluations at every step make the steps long enough to join between them."""
    kind = KINDS[name]
    jobs = [*_slow(kind), *(one for one in every_method.every(kind) if "steps" in one["train"])]
    plain, prefix = jobs[0], {**jobs[1], "method": {"type": "prefix-tuning", "length": 2}}
    nan = {**plain, "method": prefix["method"], "train": {**plain["train"], "steps": 50, "lr": HUGE[dtype]}}
    cancelled = {**prefix, "train": {**prefix["train"], "steps": 5000}}
    where: dict[str, Any] = {"base": base, "dataset": dataset, "processes": 2, "zero": zero, "kind": kind}
    where["command"] = wide_command if dtype == "fp64" else training_command
    spoiler, victim = len(jobs), len(jobs) + 1
    script = [
        (0, 2, lambda stage: stage.join(2)),
        (0, 3, lambda stage: (stage.join(3), stage.join(spoiler))),
        (0, 4, lambda stage: [stage.join(number) for number in (victim, *range(4, len(jobs)))]),
        (0, 7, lambda stage: stage.ask(0, "preempt")),
        (1, 9, lambda stage: stage.ask(victim, "cancel")),
    ]
    first = launch_scripted(root / "first", [*jobs, nan, cancelled], script, first=2, **where)
    assert first.made.events(spoiler, "failed")[0]["reason"] == "nan_loss"
    assert first.made.events(victim, "stopped")[0]["why"] == "cancel"
    second = _resumed(root, first, jobs, where)
    with precision(dtype):
        solos = isolation.alone(root, kind, base, dataset, jobs)
    done = [(isolation.called(jobs[n]), difference(first.made, n, solos[n])) for n in range(1, len(jobs))]
    return [*done, (f"{isolation.called(plain)}, resumed", difference(second, 1, solos[0], attempt=2))]


def _slow(kind: str) -> list[dict[str, Any]]:
    slow = {"train__steps": 16, "train__eval_every": 1}
    made = [
        recipe({"type": "prompt-tuning", "length": 3}, train__lr=0.3, train__clip=None, **slow),
        recipe({"type": "prefix-tuning", "length": 2, "dropout": 0.3}, train__batch_size=3, **slow),
        recipe({"type": "p-tuning", "length": 4}, train__lr=0.01, train__seeds=[4], train__accumulation=2, **slow),
        recipe({"type": "prompt-tuning", "length": 7}, train__optimizer="adafactor", train__steps=9),
    ]
    for one in made if kind == "masked" else []:
        one["task"] = {**isolation.WORDS, "input": one["task"]["input"] + " is [MASK]"}
    return made


def _resumed(root: Path, first: Stage, jobs: Sequence[dict[str, Any]], where: dict[str, Any]) -> MadeRun:
    """The preempted job joins a run of two other processes, in which a stranger is."""
    left = first.made.events(0, "stopped")[0]["step"]
    only = {name: where[name] for name in ("base", "dataset", "kind")}
    make_run(root / "first", jobs, attempt=2, **only)
    stranger = {**jobs[0], "method": {"type": "prompt-tuning", "length": 5}}
    stranger["train"] = {**jobs[0]["train"], "steps": 12, "seeds": [77]}
    chosen = [(root / "second" / "jobs" / "2"), first.made.jobs[0].root]
    second = launch_scripted(
        root / "second", [stranger, stranger], [(0, 3, lambda stage: stage.join(1))],
        chosen=[type(first.made.jobs[0])(folder) for folder in chosen], **where,
    )  # fmt: skip
    assert second.made.events(1, "started")[-1]["resumed_from"] == left
    return second.made


if __name__ == "__main__":
    sys.exit(main())
