"""Jobs that share a run are what they are alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close
from training_fixtures import MadeRun, make_run, recipe

from orchestrator.errors import BadData
from orchestrator.jobspec import RunSpec
from orchestrator.training import parts
from orchestrator.training.objectives import asking

PROMPT = {"type": "prompt-tuning", "length": 3}
PREFIX = {"type": "prefix-tuning", "length": 2, "dropout": 0.3}
MLP_PREFIX = {"type": "prefix-tuning", "length": 4, "reparameterization": {"hidden": 8}}
LSTM = {"type": "p-tuning", "reparameterization": {"type": "lstm"}}
INFIX = {"type": "prefix-tuning", "length": 3, "placement": "infix"}
EMBEDDING_ONLY = {"type": "prefix-tuning", "length": 2, "embedding_only": True, "reparameterization": {"hidden": 8}}
DEEP = {"type": "p-tuning-v2", "length": 3, "dropout": 0.2}
DEEP_MLP = {"type": "p-tuning-v2", "length": 2, "reparameterization": {"hidden": 8, "layers": 2}}
MLP = {"type": "p-tuning", "length": 5, "reparameterization": {"type": "mlp"}}
HEAD = {"head": {"pooling": "mean", "dropout": 0.1}, "type": "classify", "labels": ["warm", "cold"]}
WORDS = {"type": "classify", "labels": {"warm": ["warm"], "cold": ["cold"]}}


def mixed(kind: str) -> list[dict[str, Any]]:
    """Jobs of every method with lengths, batches, rates, schedules, clips and steps of their own."""
    slots = recipe(LSTM, train__batch_size=3, train__seeds=[5], train__clip=0.01)
    slots["task"] = {**slots["task"], "input": "[P:2] the {text} [P:1]"}
    jobs = [
        recipe(PROMPT, train__lr=0.3, train__clip=None, train__schedule="constant"),
        recipe(PROMPT, train__lr=0.02, train__optimizer="adafactor", train__weight_decay=1e-5),
        recipe(PREFIX, train__batch_size=2, train__steps=9, train__seeds=[3], train__accumulation=2),
        slots,
        recipe(MLP_PREFIX, train__seeds=[9], train__warmup=0.5, train__schedule="cosine"),
    ]
    if kind == "causal":
        scored = recipe(MLP, train__steps=4)
        scored["task"] = {**WORDS, "input": "the {text} is "}
        behind = recipe(INFIX, train__steps=3)
        behind["task"] = {**WORDS, "input": "the {text}", "separator": " is "}
        steps = {"train__steps": 3}
        more = [recipe(method, **steps) for method in (DEEP_MLP, INFIX, EMBEDDING_ONLY)]
        return [*jobs, scored, behind, *more]
    if kind == "seq2seq":
        return jobs
    for job in jobs:
        job["task"] = {**WORDS, "input": job["task"]["input"] + " is [MASK]"}
    headed = recipe(MLP, train__head_lr=0.2)
    headed["task"] = {**HEAD, "input": "the {text}"}
    alone = recipe({"type": "head"})
    alone["task"] = {**HEAD, "input": "{text}"}
    deep = recipe(DEEP, train__head_lr=0.1)
    deep["task"] = {**HEAD, "head": {}, "input": "{text}"}
    return [*jobs, headed, alone, deep]


@pytest.mark.parametrize(("base", "kind"), [("gpt2", "causal"), ("t5", "seq2seq"), ("bert", "masked")])
def test_each_job_is_as_if_alone(base: str, kind: str, bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    recipes = mixed(kind)
    fused = make_run(tmp_path / "fused", recipes, base=bases[base], dataset=dataset, kind=kind)
    assert fused.train() == 0
    for number, one in enumerate(recipes):
        alone = make_run(tmp_path / f"alone-{number}", [one], base=bases[base], dataset=dataset, kind=kind)
        assert alone.train() == 0
        expected = alone.losses()
        assert list(expected) == list(range(1, one["train"]["steps"] + 1))
        assert fused.losses(number) == pytest.approx(expected, rel=2e-5)
        assert_close(
            load_file(fused.jobs[number].artifact(1) / "prompt.safetensors"),
            load_file(alone.jobs[0].artifact(1) / "prompt.safetensors"),
            rtol=2e-4,
            atol=2e-5,
        )
        assert fused.artifact(number)["metrics"] == alone.artifact()["metrics"]


def test_jobs_that_train_nothing_share_a_run_too(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    """PET's patterns and worked examples on the frozen base, beside a prompt that is trained."""
    task = {"type": "classify", "input": "the {text} is [MASK]", "labels": {"warm": ["red"], "cold": ["black"]}}
    scored = {"eval_batch_size": 4, "seeds": [3]}
    methods = [{"type": "pet", "patterns": ["a [MASK] {text}"]}, {"type": "prompt-design", "shots": 2}]
    jobs = [recipe(method, task=task) | {"train": scored} for method in methods] + [recipe(PROMPT, task=task)]
    made = {"base": bases["bert"], "dataset": dataset, "kind": "masked"}
    fused = make_run(tmp_path / "fused", jobs, **made)
    assert fused.train() == 0
    for number, one in enumerate(jobs):
        alone = make_run(tmp_path / f"alone-{number}", [one], **made)
        assert alone.train() == 0
        assert fused.artifact(number)["metrics"] == alone.artifact()["metrics"]
        assert fused.losses(number) == pytest.approx(alone.losses(), rel=2e-5)


def test_a_job_that_fails_leaves_its_neighbours_alone(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    good = recipe(PROMPT)
    nan = recipe(PROMPT, train__lr=1e30, train__clip=None)
    stranger = recipe(PROMPT)
    stranger["task"] = {"type": "classify", "input": "{text}", "label": "{target}", "labels": ["cat", "house"]}
    beyond = [  # what fp32 holds: torch refuses such factors
        *(recipe(PROMPT, train__lr=1e38, train__optimizer=name) for name in ("adamw", "adam")),
        *(recipe(PROMPT, train__lr=1e300, train__optimizer=name) for name in ("adafactor", "adam")),
        *(recipe(PROMPT, train__weight_decay=1e300, train__optimizer=name) for name in ("adamw", "adam")),
    ]
    fused = make_run(tmp_path / "fused", [nan, good, stranger, *beyond], base=bases["gpt2"], dataset=dataset)
    assert fused.train() == 1
    for number in (0, *range(3, 9)):
        assert fused.events(number, "failed")[0]["reason"] == "nan_loss"
        assert "train.lr" in fused.events(number, "failed")[0]["message"]
    assert fused.events(2, "failed")[0]["reason"] == "bad_data"
    assert "tiny@1, validation row 3" in fused.events(2, "failed")[0]["message"]
    assert not fused.losses(2)  # before its first step
    alone = make_run(tmp_path / "alone", [good], base=bases["gpt2"], dataset=dataset)
    assert alone.train() == 0
    assert fused.losses(1) == pytest.approx(alone.losses(), rel=1e-6)
    assert not fused.jobs[0].artifact(1).exists()


def test_jobs_that_are_scored_at_the_same_step_are_scored_in_the_same_forwards(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"train__eval_every": 2, "train__steps": 5, "train__lr": 0.3, "train__baseline": False}
    jobs = [recipe(method, train__seeds=[n], **changes) for n, method in enumerate((PROMPT, PREFIX, MLP_PREFIX))]
    scored = recipe(MLP, **changes)
    jobs.append({**scored, "task": {**WORDS, "input": "the {text} is "}})
    written: list[int] = []
    generate = asking.generate

    def counted(host: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        written.append(len(batch))
        return generate(host, batch, *args, **kwargs)

    monkeypatch.setattr(asking, "generate", counted)
    fused = make_run(tmp_path / "fused", jobs, base=bases["gpt2"], dataset=dataset)
    assert fused.train() == 0
    together = list(written)
    for number, one in enumerate(jobs):
        alone = make_run(tmp_path / f"alone-{number}", [one], base=bases["gpt2"], dataset=dataset)
        assert alone.train() == 0
        assert validations(fused, number) == validations(alone, 0)
        assert list(validations(alone, 0)) == [2, 4, 5]
    assert sorted(together)[-1] > 4 == max(written[len(together) :])  # rows of several jobs, and of one
    assert sum(together) == sum(written[len(together) :])
    assert len(together) < len(written) - len(together)


def test_jobs_that_take_turns_are_bit_for_bit_as_alone(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    """Sums in a matrix product are ordered otherwise in a larger one; theirs is as large as alone."""
    jobs = [one for one in mixed("causal")[:5] if one["train"]["steps"] < 9]
    fused = make_run(tmp_path / "fused", jobs, base=bases["gpt2"], dataset=dataset)
    replace(RunSpec.read(fused.folder.spec), fuse_turns=True).write(fused.folder.spec)
    assert fused.train() == 0
    for number, one in enumerate(jobs):
        alone = make_run(tmp_path / f"alone-{number}", [one], base=bases["gpt2"], dataset=dataset)
        assert alone.train() == 0
        assert fused.losses(number) == alone.losses()
        assert fused.prompt_bytes(number) == alone.prompt_bytes()


def validations(run: MadeRun, number: int) -> dict[int, dict[str, float]]:
    return {e["step"]: e["values"] for e in run.events(number, "metric") if e["split"] == "validation"}


def test_what_is_wrong_with_ones_scores_is_its_own(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [recipe(PROMPT, train__eval_every=2, train__seeds=[n], train__steps=5) for n in (1, 2)]
    score = parts.score
    calls = [0]

    def failing(metrics: Any, predictions: Any, references: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] in {2, 4}:  # the second job's, together and by itself
            raise BadData("no score for this")
        return score(metrics, predictions, references, **more)

    monkeypatch.setattr(parts, "score", failing)
    fused = make_run(tmp_path / "fused", jobs, base=bases["gpt2"], dataset=dataset)
    assert fused.train() == 1
    assert [e["message"] for e in fused.events(1, "failed")] == ["no score for this"]
    assert list(validations(fused, 0)) == [2, 4, 5]
    alone = make_run(tmp_path / "alone", jobs[:1], base=bases["gpt2"], dataset=dataset)
    assert alone.train() == 0
    assert validations(fused, 0) == validations(alone, 0)
