"""The program of a run on a pretended card (`pretend_cuda`): the results of the CPU, and nobody waits for the card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pretend_varlen
import pytest
import torch
import torch.distributed as dist
from isolation import HEAD, WORDS
from pretend_cuda import UUID, Card, pretended_card
from ranks import on_two_ranks
from safetensors.torch import load_file
from test_reading_tasks import ASKED, FACTS, TAGGED, TAGS
from test_resume import interrupted_at
from training_fixtures import KINDS, MadeRun, make_run, recipe

from orchestrator.data.store import SplitWriter
from orchestrator.errors import BadInput
from orchestrator.jobspec import RunSpec
from orchestrator.training import calibrate, loop
from orchestrator.training.distributed import Processes
from orchestrator.training.predict import Predictor
from orchestrator.training.run import Run
from orchestrator.training.stop import STOPPED_EXIT_CODE
from orchestrator.tuning.fast import Fast
from orchestrator.tuning.host import BaseHost

PROMPT = {"type": "prompt-tuning", "length": 3}
#: Between the second step and the third nothing is due; then an evaluation and a checkpoint are.
DUE = {"train__steps": 4, "train__checkpoint_every": 3}
SCORED = {**DUE, "train__eval_every": 3, "train__eval_rows": 3}
QUIET = {"train__steps": 3, "train__checkpoint_every": 100}
MASKED = {**WORDS, "input": "the {text} is [MASK]"}
SLOTS = {**WORDS, "input": "[P:2] the {text} [P:1] is [MASK]"}
TRIGGERS = {**WORDS, "input": "[T:2] the {text} is [MASK]"}
#: A neighbour of every kind, on every kind of base.
TOGETHER = {
    "gpt2": [
        recipe(PROMPT, **SCORED, train__seeds=[4]),
        recipe({"type": "prefix-tuning", "length": 2, "dropout": 0.3}, **SCORED, train__optimizer="adafactor"),
        recipe({"type": "prefix-tuning", "length": 3, "placement": "infix"}, **DUE, task__beams=2),
        recipe({"type": "p-tuning", "length": 4, "reparameterization": {"type": "lstm", "dropout": 0.2}}, **SCORED),
        recipe({"type": "prefix-tuning", "length": 2, "reparameterization": {"hidden": 8}}, **DUE)
        | {"task": {**WORDS, "input": "the {text} is "}},
    ],
    "t5": [
        recipe(PROMPT, **SCORED, task__beams=2),
        recipe({"type": "prefix-tuning", "length": 2, "dropout": 0.3}, **SCORED, train__accumulation=2),
        recipe({"type": "prefix-tuning", "length": 4}, **DUE) | {"task": {**WORDS, "input": "the {text}"}},
    ],
    "bert": [
        recipe(PROMPT, **SCORED) | {"task": MASKED},
        recipe({"type": "p-tuning-v2", "length": 3, "dropout": 0.2}, **SCORED) | {"task": {**HEAD, "input": "{text}"}},
        recipe({"type": "p-tuning"}, **SCORED, train__clip=0.01) | {"task": SLOTS},
        recipe({"type": "warp"}, **SCORED) | {"task": SLOTS},
    ],
}  # fmt: skip
#: Those that have a base for themselves, or ask it more than once a step.
ALONE = {
    "fine-tuning": ("gpt2", recipe({"type": "fine-tuning"}, **QUIET, train__lr=0.01)),
    "lora": ("gpt2", recipe({"type": "lora", "rank": 2}, **QUIET, train__gradient_checkpointing=True)),
    "autoprompt": (
        "bert",
        recipe({"type": "autoprompt", "candidates": 3, "init": {"type": "vocab"}}, **QUIET, train__lr=1.0)
        | {"task": TRIGGERS},
    ),
    "pet": (
        "bert",
        recipe({"type": "pet", "mlm": 0.3, "patterns": ["{text} [MASK]"]}, **QUIET, train__base_lr=0.01)
        | {"task": MASKED},
    ),
    "base dropout": ("t5", recipe(PROMPT, **QUIET, train__base_dropout=True)),
}


def on_card(made: MadeRun, **changes: Any) -> MadeRun:
    """The run as a worker gives it a card."""
    replace(RunSpec.read(made.folder.spec), device="cuda", gpus=[f"GPU-{UUID}"], **changes).write(made.folder.spec)
    return made


def everything(made: MadeRun) -> list[Any]:
    """What a run leaves, but for times and machines."""
    found: list[Any] = []
    for number, paths in enumerate(made.jobs):
        facts = made.artifact(number)
        found.append([made.losses(number), *(facts[name] for name in ("metrics", "baseline", "samples", "steps"))])
        files = [*sorted(paths.artifact(1).rglob("*.safetensors")), *sorted(paths.checkpoints.rglob("*.safetensors"))]
        found.append({str(f.relative_to(paths.root)): {n: t.tolist() for n, t in load_file(f).items()} for f in files})
        near = paths.artifact(1) / "neighbours.json"
        found.append(json.loads(near.read_text()) if near.exists() else None)
    return found


def pair(root: Path, recipes: Sequence[dict[str, Any]], base: Path, dataset: Path, kind: str) -> list[MadeRun]:
    where: dict[str, Any] = {"base": base, "dataset": dataset, "kind": kind}
    return [make_run(root / name, recipes, **where) for name in ("cpu", "card")]


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, device: Card) -> Iterator[list[tuple[int, int]]]:
    """How often the host had waited, and how many copies from ordinary memory there were, before each fused step."""
    found: list[tuple[int, int]] = []
    fused = loop.fused_step

    def counted(*arguments: Any) -> Any:
        found.append((len(device.waits), len(device.pageable)))
        return fused(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_REPORT_SECONDS", 1e9)
        patch.setattr(loop, "fused_step", counted)
        yield found


def waited(device: Card, before: list[tuple[int, int]], step: int = 2) -> list[str]:
    """For what between this step's beginning and the next one's."""
    (first, copied), (last, more) = before[step - 1 : step + 1]
    return device.waits[first:last] + device.pageable[copied:more]


@pytest.mark.parametrize("base", TOGETHER)
def test_jobs_in_company_are_those_of_the_cpu(
    base: str, bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And between two reads of their losses nobody waits for the card; the first step finds out what a base can do."""
    cpu, card = pair(tmp_path, TOGETHER[base], bases[base], dataset, KINDS[base])
    assert cpu.train() == 0
    with pretended_card() as device, watched(monkeypatch, device) as before:
        assert on_card(card).train() == 0
    assert everything(card) == everything(cpu)
    assert waited(device, before) == []
    assert waited(device, before, 3)  # evaluations and checkpoints are read
    ((told,), (facts,)) = card.events(0, "started"), card.events(0, "environment")
    assert told["device"].startswith("cuda")
    assert facts["hardware"]["gpus"] == [{"model": "pretended", "bytes": 1 << 33, "uuid": UUID}]


def test_jobs_that_read_are_those_of_the_cpu(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tags, spans, a missing word, and label words of several tokens."""
    rows = [{**a, **b, **c, "label": d} for a, b, c, d in zip(TAGGED, ASKED, FACTS, ("warm", "cold"), strict=False)]
    for split in ("train", "validation"):
        writer = SplitWriter(tmp_path / f"{split}.arrow", list(rows[0]))
        for row in rows:
            writer.add(list(row.values()))
        writer.close()
    words = {"type": "classify", "labels": {"warm": ["red"], "cold": ["black stone", "white river bird"]}}
    tasks = [
        {"type": "tag", "labels": TAGS, "head": {"dropout": 0.2}},
        {"type": "span"},
        {"type": "cloze", "input": "{sub} [MASK]", "target": "{obj_label}"},
        {**words, "input": "the {question} is [MASK]"},
    ]
    recipes = [recipe({"type": "p-tuning-v2", "length": 2, "dropout": 0}, **QUIET) | {"task": task} for task in tasks]
    cpu, card = pair(tmp_path, recipes, bases["bert"], tmp_path, "masked")
    assert cpu.train() == 0
    with pretended_card() as device, watched(monkeypatch, device) as before:
        assert on_card(card).train() == 0
    assert everything(card) == everything(cpu)
    assert waited(device, before) == []


@pytest.mark.parametrize("name", ALONE)
def test_a_job_by_itself_is_that_of_the_cpu(
    name: str, bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, one = ALONE[name]
    cpu, card = pair(tmp_path, [one], bases[base], dataset, KINDS[base])
    assert cpu.train() == 0
    with pretended_card() as device, watched(monkeypatch, device) as before:
        assert on_card(card).train() == 0
    assert everything(card) == everything(cpu)
    searched = 3 if name == "autoprompt" else 0  # candidates, what they promise, and the losses with them
    assert len(waited(device, before)) == searched, waited(device, before)


PLAINER = {
    "one job": ("gpt2", [TOGETHER["gpt2"][0]], Fast()),
    "padded": ("gpt2", TOGETHER["gpt2"], Fast(pack=False)),
    "padded, both ways": ("bert", TOGETHER["bert"], Fast(pack=False)),
    "torch's own optimizers": ("gpt2", TOGETHER["gpt2"][:2], Fast(together=False)),
}


@pytest.mark.parametrize("name", PLAINER)
def test_nor_does_anybody_wait_on_another_path(
    name: str, bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, recipes, fast = PLAINER[name]
    monkeypatch.setattr(BaseHost, "fast", fast)
    made = make_run(tmp_path, [quiet(one) for one in recipes], base=bases[base], dataset=dataset, kind=KINDS[base])
    with pretended_card() as device, watched(monkeypatch, device) as before:
        assert on_card(made).train() == 0
    assert waited(device, before) == []


def quiet(one: dict[str, Any]) -> dict[str, Any]:
    """Three steps between which nothing is due."""
    plain = {name: value for name, value in one["train"].items() if not name.startswith("eval_")}
    return {**one, "train": {**plain, "steps": 3, "checkpoint_every": 100}}


@contextmanager
def with_room(monkeypatch: pytest.MonkeyPatch, device: Card, room: float) -> Iterator[list[int]]:
    """So many bytes for each fused step, beside what is there when it begins; what each took at its peak."""
    taken: list[int] = []
    fused = loop.fused_step

    def bounded(*arguments: Any) -> Any:
        begun = device.peak = device.allocated
        device.limit = begun + room
        try:
            return fused(*arguments)
        finally:
            device.limit = float("inf")
            taken.append(device.peak - begun)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "fused_step", bounded)
        yield taken


def test_memory_that_ends_halves_the_forwards_and_changes_no_job(
    bases: dict[str, Path],
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipes = [recipe(PROMPT, train__steps=3), recipe(PROMPT, train__steps=3, train__seeds=[4])]
    roomy, card = pair(tmp_path, recipes, bases["gpt2"], dataset, "causal")
    with pretended_card() as device, with_room(monkeypatch, device, float("inf")) as taken:
        assert on_card(roomy).train() == 0
    room = 0.75 * max(taken)
    capsys.readouterr()
    with pretended_card() as device, with_room(monkeypatch, device, room) as taken:
        assert on_card(card).train() == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("out of memory")]
    assert said == ["out of memory with 8 rows in a forward; from now on at most 4"]
    assert device.emptied == 1
    assert max(taken) <= room
    for job in (0, 1):
        assert card.losses(job) == pytest.approx(roomy.losses(job), rel=1e-5)


def test_what_is_measured_of_a_card(bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is the allocator's: a token keeps what autograd is known to keep of it, and more while it is computed."""
    host = BaseHost.load(bases["gpt2"], kind="causal")
    plain = calibrate.calibrate(host, Processes(None, 0, 1, torch.device("cpu"), None), context=64)  # type: ignore[arg-type]
    monkeypatch.setattr(calibrate, "SECONDS_GPU", 1e-9)  # each point once
    monkeypatch.setattr(calibrate, "PATIENCE", 1e12)
    with pretended_card() as device:
        host = BaseHost.load(bases["gpt2"], kind="causal", device="cuda")
        found = calibrate.calibrate(host, Processes(None, 0, 1, torch.device("cuda"), None), context=64)  # type: ignore[arg-type]
        assert calibrate.device_name(torch.device("cuda")) == "pretended"
        waits = list(device.waits)
        calibrate._Probe(host, Processes(None, 0, 1, torch.device("cuda"), None)).run(calibrate.Point((9, 5, 7), 2, 3))  # type: ignore[arg-type]
        assert device.waits == waits  # no more than a step of a job does
    assert found.capacity_bytes == 1 << 33
    assert found.weight_bytes == plain.weight_bytes
    assert plain.token_bytes <= found.token_bytes <= 3 * plain.token_bytes
    assert any(wait.startswith("synchronize") for wait in waits)  # a time that is not waited for is none


def test_a_narrow_base_asks_the_kernel_for_all_rows_at_once(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through torch's own `varlen_attn` and its gradient; what the kernel computes is `pretend_varlen`."""
    narrow = [{**one, "base": {"model": "tiny", "dtype": "bf16"}} for one in map(quiet, TOGETHER["gpt2"][:2])]
    runs, asked, kernel = {}, [], pretend_varlen.forward
    monkeypatch.setitem(pretend_varlen.KERNELS, "_varlen_attn", lambda *a, **k: (asked.append(1), kernel(*a, **k))[1])
    for name, fast in (("in groups", Fast(varlen=False)), ("at once", Fast())):
        monkeypatch.setattr(BaseHost, "fast", fast)
        runs[name] = make_run(tmp_path / name, narrow, base=bases["gpt2"], dataset=dataset)
        asked.clear()
        with pretended_card() as device, watched(monkeypatch, device) as before:
            assert on_card(runs[name]).train() == 0
        assert bool(asked) is fast.varlen
        assert waited(device, before) == []
    for job in range(len(narrow)):
        assert runs["at once"].losses(job) == pytest.approx(runs["in groups"].losses(job), rel=0.03)


def trained(made: MadeRun, where: str) -> int:
    if where == "cpu":
        return made.train()
    with pretended_card():
        return on_card(made).train()


@pytest.mark.parametrize("devices", [("cpu", "card"), ("card", "cpu")])
def test_a_job_goes_on_where_it_was_left(
    devices: tuple[str, str], bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coming to a card, and without it."""
    one = recipe({"type": "prefix-tuning", "length": 2, "dropout": 0.3}, train__steps=4)
    one["train"] |= {"keep": "best", "eval_every": 1}
    where: dict[str, Any] = {"base": bases["gpt2"], "dataset": dataset}
    whole = make_run(tmp_path / "whole", [one], **where)
    assert whole.train() == 0
    with monkeypatch.context() as patch:
        interrupted_at(2, patch)
        assert trained(make_run(tmp_path / "parts", [one], **where), devices[0]) == STOPPED_EXIT_CODE
    parts = make_run(tmp_path / "parts", [one], **where, attempt=2)
    assert trained(parts, devices[1]) == 0
    assert parts.events(0, "started")[-1]["resumed_from"] == 2
    assert parts.losses() == whole.losses()
    assert parts.prompt_bytes(attempt=2) == whole.prompt_bytes()


def test_several_artifacts_predict_as_on_the_cpu(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    recipes = [{**one, "train": {**one["train"], "steps": 1}} for one in TOGETHER["bert"]]
    made = make_run(tmp_path, recipes, base=bases["bert"], dataset=dataset, kind="masked")
    assert made.train() == 0
    first, *others = [paths.artifact(1) for paths in made.jobs]
    rows = [{"text": text} for text in ("red cat", "black house and red river", "a bird")]
    expected = list(Predictor.load(first, bases["bert"], *others).answers(rows))
    with pretended_card() as device:
        found = list(Predictor.load(first, bases["bert"], *others, device="cuda").answers(rows))
        assert device.copies
    assert found == expected
    assert any(answer.probabilities for answers in expected for answer in answers)


def test_two_ranks_meet_on_their_cards_alone(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL knows no tensor of the host. Here gloo stands in for it, below the same calls."""
    recipes = TOGETHER["gpt2"][:2]
    alone, made = pair(tmp_path, recipes, bases["gpt2"], dataset, "causal")
    assert alone.train() == 0

    def watch(number: int) -> None:
        for name in ("all_reduce", "broadcast"):
            monkeypatch.setattr(dist, name, partial(_of_the_card, getattr(dist, name)))

    assert on_two_ranks(made, watch, device="cuda") == [0, 0]
    for job in range(len(recipes)):
        assert made.losses(job) == pytest.approx(alone.losses(job), rel=1e-4)
        assert made.artifact(job)["metrics"] == alone.artifact(job)["metrics"]


def _of_the_card(meet: Any, tensor: torch.Tensor, **options: Any) -> Any:
    assert tensor.is_cuda, "a tensor of the host"
    return meet(tensor, **options)


@pytest.mark.parametrize(("zero", "device"), [(3, "cuda"), (2, "cpu"), (None, "cpu")])
def test_a_sharded_base_stays_where_deepspeed_has_made_it(
    zero: int | None,
    device: str,
    bases: dict[str, Path],
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its engine moves any other base, and not this one: moved to the CPU it would stay there."""
    made = make_run(tmp_path, [recipe(PROMPT, **QUIET)], base=bases["gpt2"], dataset=dataset)
    asked: list[Any] = []

    def load(*_: Any, **options: Any) -> None:
        asked.append(torch.device(options["device"]))
        raise BadInput("seen")

    monkeypatch.setattr(BaseHost, "load", load)
    monkeypatch.setattr("orchestrator.training.run.load_as", lambda *_: None)
    with pretended_card():
        group = Processes(None, 0, 1, torch.device("cuda"), zero)  # type: ignore[arg-type]
        assert Run(group, made.folder, RunSpec.read(made.folder.spec)).train() == 1
    assert asked == [torch.device(device)]
