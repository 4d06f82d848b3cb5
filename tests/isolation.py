"""Jobs in company against the same jobs alone: what the tests and `make proof-isolation` share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from training_fixtures import MadeRun, make_run, recipe
from transformers.models.t5.modeling_t5 import T5LayerNorm

from orchestrator.jobspec import JobSpec, RunSpec, Ticket
from orchestrator.paths import JobPaths, write_json
from orchestrator.training import company, job, loop
from orchestrator.tuning.host import BaseHost

Script = dict[int, Callable[[], object]]  #: number of a fused step of the run -> what happens before it

WORDS = {"type": "classify", "labels": {"warm": ["warm"], "cold": ["cold"]}}
HEAD = {"type": "classify", "labels": ["warm", "cold"], "head": {"pooling": "mean", "dropout": 0.1}}


class Stage:
    """A run that starts with its first jobs; the others come when the script says so."""

    def __init__(self, made: MadeRun, *, first: int = 1, **changes: Any) -> None:
        self.made = made
        self.spec = replace(RunSpec.read(made.folder.spec), fuse_key="k", **changes)
        self.spec = replace(self.spec, jobs=[str(job.root) for job in made.jobs[:first]])
        self.spec.write(made.folder.spec)
        for folder in (made.folder.inbox, made.folder.joined):
            folder.mkdir()

    def join(self, number: int) -> bool:
        spec = JobSpec.read(self.made.jobs[number].spec)
        return Ticket(spec.job, spec.attempt, spec.folder, None).deliver(self.made.folder)

    def ask(self, number: int, why: str, attempt: int = 1) -> None:
        write_json(self.made.jobs[number].stop_request, {"attempt": attempt, "why": why})

    def play(self, monkeypatch: pytest.MonkeyPatch, script: Script) -> int:
        """In this process; returns the program's exit code."""
        steps = [0]
        fused = loop.fused_step

        def scripted(*args: Any, **kwargs: Any) -> Any:
            steps[0] += 1
            if steps[0] in script:
                script[steps[0]]()
            return fused(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "fused_step", scripted)
            patch.setattr(company, "LOOK_SECONDS", 0.0)
            return self.made.train()


def mixed(kind: str) -> list[dict[str, Any]]:
    """Jobs of unlike methods with lengths, rows, batches, optimizers, schedules, clips and steps of their own."""
    slots = recipe(
        {"type": "p-tuning", "reparameterization": {"type": "lstm", "dropout": 0.2}},
        train__batch_size=3, train__seeds=[5], train__clip=0.01, train__steps=9, train__lr=0.01,
    )  # fmt: skip
    slots["task"] = {**slots["task"], "input": "[P:2] the {text} [P:1]"}
    made = [
        recipe({"type": "prompt-tuning", "length": 3}, train__lr=0.3, train__clip=None, train__steps=12),
        recipe({"type": "prompt-tuning", "length": 9}, train__lr=0.02, train__optimizer="adafactor", train__steps=8),
        recipe(
            {"type": "prefix-tuning", "length": 2, "dropout": 0.3},
            train__batch_size=2, train__steps=9, train__seeds=[3], train__accumulation=2, train__eval_every=4,
        ),
        slots,
        recipe(
            {"type": "prefix-tuning", "length": 4, "reparameterization": {"hidden": 8}},
            train__seeds=[9], train__warmup=0.5, train__schedule="cosine", train__steps=7, train__lr=0.01,
        ),
    ]  # fmt: skip
    if kind == "masked":
        for one in made:
            one["task"] = {**WORDS, "input": one["task"]["input"] + " is [MASK]"}
        headed = recipe({"type": "p-tuning-v2", "length": 3, "dropout": 0.2}, train__head_lr=0.1, train__steps=6)
        headed["task"] = {**HEAD, "input": "the {text}"}
        return [*made, headed]
    if kind == "causal":
        scored = recipe({"type": "p-tuning", "length": 5, "reparameterization": {"type": "mlp"}}, train__steps=6)
        scored["task"] = {**WORDS, "input": "the {text} is "}
        return [*made, scored, recipe({"type": "prefix-tuning", "length": 3, "placement": "infix"}, train__steps=5)]
    return made


def odd(kind: str) -> list[dict[str, Any]]:
    """Jobs with settings that their neighbours do not have: dropout of the base, accumulation, clips, evaluations."""
    made = [
        recipe({"type": "prompt-tuning", "length": 3}, train__lr=0.3, train__clip=None, train__steps=5),
        recipe(
            {"type": "prompt-tuning", "length": 2}, train__optimizer="adafactor", train__lr=0.02, train__steps=4,
            train__accumulation=3, train__seeds=[2],
        ),
        recipe(
            {"type": "prefix-tuning", "length": 2, "dropout": 0.3}, train__batch_size=2, train__accumulation=2,
            train__eval_every=2, train__steps=5, train__seeds=[3],
        ),
        recipe(
            {"type": "p-tuning", "length": 4, "reparameterization": {"type": "lstm", "dropout": 0.2}},
            train__clip=0.01, train__lr=0.01, train__steps=5, train__batch_size=7,
        ),
        recipe(
            {"type": "prompt-tuning", "length": 3}, train__base_dropout=True, train__steps=4, train__seeds=[9]
        ),
    ]  # fmt: skip
    for one in made if kind == "masked" else []:
        one["task"] = {**WORDS, "input": one["task"]["input"] + " is [MASK]"}
    return made


def play_odd(root: Path, kind: str, base: Path, dataset: Path, dtype: str = "fp32") -> Iterator[tuple[str, Difference]]:
    """Two begin, two come, and then one whose base drops out; each against itself alone. `dtype`: of the base."""
    jobs = [{**one, "base": {"model": "tiny", "dtype": dtype}} for one in odd(kind)]
    where: dict[str, Any] = {"base": base, "dataset": dataset, "kind": kind}
    stage = Stage(make_run(root / "fused", jobs, **where), first=2)
    coming = {2: lambda: (stage.join(2), stage.join(3)), 3: lambda: stage.join(4)}
    assert stage.play(pytest.MonkeyPatch(), coming) == 0
    for number, one in enumerate(jobs):
        solo = make_run(root / f"alone-{number}", [one], **where)
        assert solo.train() == 0
        yield one["method"]["type"], difference(stage.made, number, solo)


@dataclass(frozen=True)
class Difference:
    """The largest relative differences of one job in company from the same job alone.

    Of losses absolute, where probabilities are learned.
    """

    loss: float
    prompt: float
    checkpoint: float

    @property
    def largest(self) -> float:
        return max(self.loss, self.prompt, self.checkpoint)


def difference(run: MadeRun, number: int, alone: MadeRun, attempt: int = 1) -> Difference:
    """Fails where steps, checkpoints, metrics' names or tensors' names differ at all."""
    found, expected = run.losses(number), alone.losses()
    assert list(found) == list(expected), (list(found), list(expected))
    mine, theirs = run.artifact(number, attempt), alone.artifact()
    assert mine["steps"] == theirs["steps"]
    for split, values in theirs["metrics"].items():
        assert mine["metrics"][split] == pytest.approx(values)
    prompts = [
        folder / "prompt.safetensors" for folder in (run.jobs[number].artifact(attempt), alone.jobs[0].artifact(1))
    ]
    kept = [checkpoints(paths) for paths in (run.jobs[number], alone.jobs[0])]
    assert bool(expected) == bool(theirs["steps"])  # some methods train nothing, and are scored
    assert list(kept[0])[-1:] == list(kept[1])[-1:]
    assert list(kept[0]) == list(kept[1]) or attempt > 1  # who was stopped has saved where it stopped
    both = [name for name in kept[1] if name in kept[0]]
    states = [tensors_differ(load_file(kept[0][name]), load_file(kept[1][name])) for name in both]
    # Learned probabilities: a divergence, the difference of two entropies that are near each other.
    least = 1.0 if JobSpec.read(alone.jobs[0].spec).recipe["task"].get("soft") else 0.0
    return Difference(
        max((abs(found[step] - loss) / max(abs(loss), least) for step, loss in expected.items()), default=0.0),
        tensors_differ(*(load_file(path) for path in prompts)),
        max(states, default=0.0),
    )


def checkpoints(paths: JobPaths) -> dict[str, Path]:
    return {path.parent.name: path for path in sorted(paths.checkpoints.glob("step-*/state.safetensors"))}


def tensors_differ(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any number, relative to the largest of its tensor."""
    assert sorted(found) == sorted(expected)
    worst = 0.0
    for name, tensor in expected.items():
        wanted, got = tensor.double(), found[name].double()
        assert got.shape == wanted.shape
        if wanted.numel():
            worst = max(worst, float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30)))
    return worst


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Base, prompts, heads and optimizers in fp64: then what is left of a difference is no rounding of ours."""
    if dtype == "fp32":
        yield
        return
    load, build = BaseHost.load, job.build_prompt

    def wide(*args: Any, **options: Any) -> Any:
        return load(*args, **{**options, "dtype": "fp64"})

    def built(*args: Any, **options: Any) -> Any:
        encoder, method = build(*args, **options)
        return encoder, method.double()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseHost, "load", wide)
        patch.setattr(T5LayerNorm, "forward", _normed)
        patch.setattr(job, "build_prompt", built)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def _normed(self: T5LayerNorm, states: Tensor) -> Tensor:
    """transformers' own takes the mean square in fp32 whatever the states are in."""
    return self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


def called(one: dict[str, Any]) -> str:
    """The job in a table: its method, network and task, and what else sets it apart from others of that method."""
    method, task = one["method"], one["task"]
    network = (method.get("reparameterization") or {}).get("type", "mlp" if "reparameterization" in method else "none")
    words = [method["type"], *([] if network == "none" else [f"{network} network"])]
    words += [name for name in ("embedding_only",) if method.get(name)]
    words += [place for place in (method.get("placement"),) if place in ("infix", "after-bos")]
    words += [task["type"], *(name for name in ("head", "soft", "candidates") if task.get(name) is not None)]
    words += ["mixture" for _ in range(one["train"].get("mixture") is not None)]
    return ", ".join([*words, *("keep best" for _ in range(one["train"].get("keep") == "best"))])


def play(
    root: Path, kind: str, base: Path, dataset: Path, seed: int, jobs: Sequence[dict[str, Any]]
) -> Iterator[tuple[str, MadeRun, int, int]]:
    """Jobs that start together, join at random steps, fail, are cancelled, and go on in another run.

    Yields (name, run, job's number, attempt) of each job that came to its end.
    """
    chance = random.Random(seed)
    plain, _, dropping, *_ = mixed(kind)
    huge = torch.finfo(torch.get_default_dtype()).max / 20  # a sum of its numbers is infinite
    nan = {**plain, "method": {"type": "prefix-tuning", "length": 2}}
    nan["train"] = {**plain["train"], "lr": huge, "schedule": "constant", "steps": 50}
    cancelled = {**dropping, "train": {**dropping["train"], "steps": 50}}
    cast = [*jobs, nan, cancelled]
    spoiler, victim, guest = len(jobs), len(jobs) + 1, 0
    stage = Stage(make_run(root, cast, base=base, dataset=dataset, kind=kind), first=3)
    script: dict[int, list[Callable[[], object]]] = {}

    def at(step: int, *what: Callable[[], object]) -> None:
        script.setdefault(step, []).extend(what)

    for number in range(3, len(cast)):
        at(chance.randint(2, 5), lambda number=number: stage.join(number))
    at(chance.randint(6, 7), lambda: stage.ask(guest, "preempt"), lambda: stage.ask(victim, "cancel"))
    code = stage.play(
        pytest.MonkeyPatch(), {step: lambda all_=all_: [one() for one in all_] for step, all_ in script.items()}
    )
    assert code == 1
    assert stage.made.events(spoiler, "failed")[0]["reason"] == "nan_loss"
    assert stage.made.events(victim, "stopped")[0]["why"] == "cancel"
    for number in range(1, len(jobs)):
        yield jobs[number]["method"]["type"], stage.made, number, 1
    left = stage.made.events(guest, "stopped")[0]["step"]
    assert 0 < left < jobs[guest]["train"]["steps"]
    second = _again(root, cast, base, dataset, kind)
    assert second.play(pytest.MonkeyPatch(), {2: lambda: second.join(1)}) == 0
    assert second.made.events(1, "started")[-1]["resumed_from"] == left
    yield f"{jobs[guest]['method']['type']}, resumed", second.made, 1, 2


def _again(root: Path, cast: Sequence[dict[str, Any]], base: Path, dataset: Path, kind: str) -> Stage:
    """Another run: a stranger is in it, and the preempted first job may join it."""
    stranger = {**cast[1], "train": {**cast[1]["train"], "seeds": [77]}}
    made = make_run(root, cast, base=base, dataset=dataset, kind=kind, attempt=2)
    other = make_run(root / "other", [stranger] * 2, base=base, dataset=dataset, kind=kind)
    for name in ("joined", "inbox.closed"):
        (made.folder.root / name).rename(made.folder.root / f"{name} before")
    return Stage(MadeRun(root, [other.jobs[1], made.jobs[0]]))


def alone(root: Path, kind: str, base: Path, dataset: Path, jobs: Sequence[dict[str, Any]]) -> list[MadeRun]:
    """Each job by itself."""
    found = []
    for number, one in enumerate(jobs):
        made = make_run(root / f"alone-{number}", [one], base=base, dataset=dataset, kind=kind)
        assert made.train() == 0
        found.append(made)
    return found
