"""One optimizer step for all jobs: torch's own AdamW and clipping, bit for bit; and losses that are read late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim
from training_fixtures import MadeRun, make_run, recipe

from orchestrator.training import loop, run
from orchestrator.training import step as steps
from orchestrator.training.checkpoint import optimizer_tensors, restore_optimizer
from orchestrator.training.loop import Loop
from orchestrator.training.together import adamw_together, clip_together
from orchestrator.tuning.fast import Fast
from orchestrator.tuning.host import BaseHost

PROMPT = {"type": "prompt-tuning", "length": 3}


def optimizers() -> list[optim.AdamW]:
    """Three jobs: one tensor, two, and two groups; rates, decays and moments of their own."""
    torch.manual_seed(3)

    def weights(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(*shape))

    head = [{"params": [weights(4, 5)], "lr": 0.1}, {"params": [weights(2), weights(3, 3)], "lr": 0.01}]
    return [
        optim.AdamW([weights(5, 32)], lr=0.3, weight_decay=0.0),
        optim.AdamW([weights(7), weights(2, 3)], lr=0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
        optim.AdamW(head, weight_decay=0.01),
    ]


def parameters(optimizer: optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def give_gradients(made: list[optim.AdamW], step: int) -> None:
    torch.manual_seed(100 + step)
    for optimizer in made:
        for parameter in parameters(optimizer):
            parameter.grad = torch.randn_like(parameter) * 3


def test_adamw_and_clipping_are_torchs_bit_for_bit() -> None:
    one, all_at_once = optimizers(), optimizers()
    clips = [0.01, None, 0.3]
    for step in range(4):
        give_gradients(one, step)
        give_gradients(all_at_once, step)
        expected = [
            nn.utils.clip_grad_norm_(parameters(o), float("inf") if clip is None else clip)
            for o, clip in zip(one, clips, strict=True)
        ]
        for optimizer in one[: 3 - step % 2]:  # the last job skips a step: step counts are their own
            optimizer.step()
        norms = clip_together([parameters(o) for o in all_at_once], clips)
        adamw_together(all_at_once[: 3 - step % 2])
        assert torch.equal(norms, torch.stack(expected))
        for mine, theirs in zip(all_at_once, one, strict=True):
            for a, b in zip(parameters(mine), parameters(theirs), strict=True):
                assert torch.equal(a, b)


def test_its_state_is_torchs() -> None:
    one, other = optimizers(), optimizers()
    give_gradients(one, 0)
    give_gradients(other, 0)
    adamw_together(one)
    for optimizer, resumed in zip(one, other, strict=True):
        resumed.step()
        assert optimizer_tensors(optimizer).keys() == optimizer_tensors(resumed).keys()
        restore_optimizer(resumed, {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()})
    give_gradients(one, 1)
    give_gradients(other, 1)
    adamw_together(one)
    for resumed in other:
        resumed.step()
    for mine, theirs in zip(one, other, strict=True):
        for a, b in zip(parameters(mine), parameters(theirs), strict=True):
            assert torch.equal(a, b)


def test_a_job_that_is_nan_leaves_the_others_numbers_alone() -> None:
    sane, mixed = optimizers(), optimizers()
    give_gradients(sane, 0)
    give_gradients(mixed, 0)
    parameters(mixed[1])[0].grad = torch.full((7,), torch.nan)
    for made in (sane, mixed):
        clip_together([parameters(o) for o in made], [1.0, 1.0, 1.0])
        adamw_together(made)
    for number in (0, 2):
        for a, b in zip(parameters(sane[number]), parameters(mixed[number]), strict=True):
            assert torch.equal(a, b)
    assert parameters(mixed[1])[0].isnan().all()


@pytest.fixture
def _late(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: losses are read when something is due, and not otherwise."""
    monkeypatch.setattr(loop, "_REPORT_SECONDS", 1e9)
    before = Loop.__init__

    def deferred(self: Loop, *args: Any, **kwargs: Any) -> None:
        before(self, *args, **{**kwargs, "defer": True})

    monkeypatch.setattr(Loop, "__init__", deferred)


def trained(root: Path, bases: dict[str, Path], dataset: Path, recipes: list[dict[str, Any]]) -> MadeRun:
    made = make_run(root, recipes, base=bases["gpt2"], dataset=dataset)
    made.train()
    return made


def test_losses_read_late_are_the_same_losses(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    recipes = [recipe(PROMPT, train__eval_every=3), recipe(PROMPT, train__steps=5, train__seeds=[4])]
    at_once = trained(tmp_path / "at-once", bases, dataset, recipes)
    request.getfixturevalue("_late")
    late = trained(tmp_path / "late", bases, dataset, recipes)
    for job in (0, 1):
        assert late.losses(job) == at_once.losses(job)
        assert late.prompt_bytes(job) == at_once.prompt_bytes(job)
        assert [e["step"] for e in late.events(job, "checkpoint")] == [
            e["step"] for e in at_once.events(job, "checkpoint")
        ]


@pytest.mark.usefixtures("_late")
def test_a_nan_read_late_ends_its_job_at_its_step(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    """Steps after the NaN are not reported, no checkpoint comes after it, and the neighbour never notices."""
    nan = recipe(PROMPT, train__lr=1e30, train__clip=None, train__checkpoint_every=6)
    good = recipe(PROMPT, train__checkpoint_every=4)
    late = trained(tmp_path / "late", bases, dataset, [nan, good])
    (failed,) = late.events(0, "failed")
    assert failed["reason"] == "nan_loss"
    assert f"at step {max(late.losses(0)) + 1}" in failed["message"]
    assert not late.events(0, "checkpoint")
    assert list(late.losses(1)) == list(range(1, 7))
    alone = trained(tmp_path / "alone", bases, dataset, [good])
    assert late.losses(1) == pytest.approx(alone.losses(), rel=1e-6)


def test_the_switch_changes_nothing(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [recipe(PROMPT, train__clip=0.01), recipe(PROMPT, train__weight_decay=0.1, train__optimizer="adafactor")]
    together = trained(tmp_path / "together", bases, dataset, recipes)
    monkeypatch.setattr(BaseHost, "fast", Fast(together=False))
    apart = trained(tmp_path / "apart", bases, dataset, recipes)
    for job in (0, 1):
        assert together.prompt_bytes(job) == apart.prompt_bytes(job)


def test_jobs_that_are_too_many_for_one_forward_take_turns(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one job only, each has its forward to itself, and is bit for bit what it is alone."""
    recipes = [recipe(PROMPT), recipe(PROMPT, train__seeds=[4], train__batch_size=3)]
    rows: list[int] = []
    forward = steps.forward
    monkeypatch.setattr(
        steps, "forward", lambda host, batch, *a, **k: rows.append(len(batch)) or forward(host, batch, *a, **k)
    )
    fused = trained(tmp_path / "together", bases, dataset, recipes)
    assert set(rows) == {7}
    rows.clear()
    monkeypatch.setattr(run, "_CPU_TOKENS", 1)
    apart = trained(tmp_path / "in-turn", bases, dataset, recipes)
    assert rows == [4, 3] * 6
    for number, one in enumerate(recipes):
        alone = trained(tmp_path / f"alone-{number}", bases, dataset, [one])
        assert apart.prompt_bytes(number) == alone.prompt_bytes(0)
        assert fused.losses(number) == pytest.approx(alone.losses(), rel=1e-6)
