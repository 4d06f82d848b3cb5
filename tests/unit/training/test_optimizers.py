"""Adafactor against its update written out in numpy, and against transformers' own where the two agree."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from transformers.optimization import Adafactor as Factored

from orchestrator.recipe.methods import PromptTuning
from orchestrator.recipe.optimizers import Adafactor as Config
from orchestrator.recipe.optimizers import AdamW
from orchestrator.recipe.schema import Train
from orchestrator.training.optimizers import Adafactor, build_optimizer, optimizer_of
from orchestrator.tuning import BaseHost, build_method
from orchestrator.tuning.own_weights import OwnWeights

SHAPES = ((5, 8), (7,), (2, 3, 4))
OPTIONS = {"decay": 0.8, "clipping_threshold": 1.0, "eps": 1e-30}


class Written:
    """t5x/adafactor.py, apply_param_gradient, for a parameter that is not factored; in double precision."""

    def __init__(self, start: NDArray[np.float64], **options: float) -> None:
        self.parameter, self.v, self.step, self.options = start.copy(), np.zeros_like(start), 0, options

    def apply(self, gradient: NDArray[np.float64], lr: float) -> None:
        o = self.options
        t = self.step + 1
        decay_rate = 1.0 - t ** (-o["decay"])
        mixing_rate = 1.0 - decay_rate
        grad_sqr = gradient * gradient + o["eps"]
        self.v = decay_rate * self.v + mixing_rate * grad_sqr
        y = gradient * self.v**-0.5
        clipping_denom = np.maximum(1.0, np.sqrt(np.mean(y * y)) / o["clipping_threshold"])
        y = y / clipping_denom
        self.parameter = (1.0 - o["weight_decay"]) * self.parameter - lr * y
        self.step += 1


def gradients(draw: np.random.Generator, step: int) -> list[NDArray[np.float64]]:
    """Of very different sizes from step to step, so that the update is clipped at some and not at others."""
    return [draw.normal(0, 10.0 ** ((step * 7) % 5 - 3), shape) for shape in SHAPES]


@pytest.mark.parametrize(
    "changes", [{}, {"decay": 0.5}, {"clipping_threshold": 0.1}, {"eps": 1e-3}, {"weight_decay": 0.0}], ids=str
)
def test_the_update_is_the_one_written_out(changes: dict[str, float]) -> None:
    options = OPTIONS | {"weight_decay": 1e-2} | changes
    draw = np.random.default_rng(3)
    starts = [draw.normal(0, 2, shape) for shape in SHAPES]
    expected = [Written(start, **options) for start in starts]
    parameters = [nn.Parameter(torch.tensor(start, dtype=torch.float32)) for start in starts]
    config = Config(type="adafactor", **{k: options[k] for k in OPTIONS})
    optimizer = build_optimizer(config, [{"params": parameters, "lr": 0.3}], options["weight_decay"])
    for step in range(30):
        optimizer.param_groups[0]["lr"] = lr = 0.3 / (1 + step % 3)
        for parameter, oracle, gradient in zip(parameters, expected, gradients(draw, step), strict=True):
            parameter.grad = torch.tensor(gradient, dtype=torch.float32)
            oracle.apply(gradient, lr)
        optimizer.step()
        for parameter, oracle in zip(parameters, expected, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), oracle.parameter, rtol=2e-5, atol=2e-6)


class WrittenFactored(Written):
    """The same function for a parameter that is factored: d0 is its largest dimension, d1 the one before."""

    def __init__(self, start: NDArray[np.float64], **options: float) -> None:
        super().__init__(start, **options)
        self.d1, self.d0 = (int(i) for i in np.argsort(start.shape, kind="stable")[-2:])
        self.v_row, self.v_col = (np.zeros(np.delete(start.shape, d)) for d in (self.d0, self.d1))

    def apply(self, gradient: NDArray[np.float64], lr: float) -> None:
        o, d0, d1 = self.options, self.d0, self.d1
        decay_rate = 1.0 - (self.step + 1) ** (-o["decay"])
        mixing_rate = 1.0 - decay_rate
        grad_sqr = gradient * gradient + o["eps"]
        self.v_row = decay_rate * self.v_row + mixing_rate * np.mean(grad_sqr, axis=d0)
        self.v_col = decay_rate * self.v_col + mixing_rate * np.mean(grad_sqr, axis=d1)
        reduced_d1 = d1 - 1 if d1 > d0 else d1
        row_col_mean = np.mean(self.v_row, axis=reduced_d1, keepdims=True)
        row_factor = (self.v_row / row_col_mean) ** -0.5
        col_factor = self.v_col**-0.5
        y = gradient * np.expand_dims(row_factor, axis=d0) * np.expand_dims(col_factor, axis=d1)
        y = y / np.maximum(1.0, np.sqrt(np.mean(y * y)) / o["clipping_threshold"])
        self.parameter = (1.0 - o["weight_decay"]) * self.parameter - lr * y
        self.step += 1


def test_matrices_of_the_base_are_factored_and_nothing_else() -> None:
    """As t5x trains T5; not what has a side under 128, nor what is no matrix, nor a prompt."""
    draw = np.random.default_rng(5)
    kinds = {(128, 200): WrittenFactored, (200, 128): WrittenFactored, (127, 200): Written, (300,): Written}
    options = OPTIONS | {"weight_decay": 1e-2}
    expected = [kind(draw.normal(0, 2, shape), **options) for shape, kind in kinds.items()]
    parameters = [nn.Parameter(torch.tensor(one.parameter, dtype=torch.float32)) for one in expected]
    prompt = nn.Parameter(torch.zeros(128, 200))
    groups = [{"params": parameters, "lr": 0.3, "factored": True}, {"params": [prompt], "lr": 0.3}]
    optimizer = build_optimizer(Config(type="adafactor"), groups, 1e-2)
    for step in range(12):
        for parameter, oracle in zip(parameters, expected, strict=True):
            sizes = 10.0 ** ((step * 7) % 5 - 3) * draw.uniform(0.1, 3, oracle.parameter.shape[:1])  # by row
            gradient = draw.normal(0, 1, oracle.parameter.shape) * sizes.reshape(-1, *[1] * (parameter.dim() - 1))
            parameter.grad = torch.tensor(gradient, dtype=torch.float32)
            oracle.apply(gradient, 0.3)
        prompt.grad = torch.ones_like(prompt)
        optimizer.step()
        for parameter, oracle in zip(parameters, expected, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), oracle.parameter, rtol=2e-5, atol=1e-5)
    kept = [{name for name in optimizer.state[p] if name != "step"} for p in (*parameters, prompt)]
    assert kept == [{"row_moment", "column_moment"}] * 2 + [{"second_moment"}] * 3


@pytest.mark.parametrize("factored", [True, False])
def test_the_recipe_says_whether_the_base_is_factored(factored: bool, bases: dict[str, Path]) -> None:
    base = BaseHost.load(bases["gpt2"], kind="causal")
    method = build_method(PromptTuning(type="prompt-tuning", length=2), base, length=None, generator=torch.Generator())
    for decay in (0, 0.1):
        chosen = Config(type="adafactor", factored=factored)
        train = Train(lr=0.1, base_lr=0.01, steps=1, optimizer=chosen, weight_decay=decay)
        optimizer = optimizer_of(train, method, None, OwnWeights(base, "all"))
        assert optimizer is not None
        prompts, *others = optimizer.param_groups
        assert not prompts["factored"]
        assert {group["factored"] for group in others} == {factored}


@pytest.mark.parametrize("shape", [(6,), (130, 140)], ids=["vector", "factored"])
def test_without_weight_decay_it_is_transformers_adafactor(shape: tuple[int, ...]) -> None:
    """Where theirs factors as ours does; they multiply the weight decay by the learning rate."""
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    mine = Adafactor([{"params": [ours], "lr": 0.3, "factored": True}], weight_decay=0.0, **OPTIONS)
    other = Factored([theirs], lr=0.3, scale_parameter=False, relative_step=False, decay_rate=-0.8, weight_decay=0.0)
    for _ in range(10):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        mine.step()
        other.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 4), (128, 130)], ids=["whole", "factored"])
def test_it_goes_on_where_it_was_saved(shape: tuple[int, int]) -> None:
    def run(steps: range, state: dict[str, Any] | None, start: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
        parameter = nn.Parameter(start.clone())
        optimizer = Adafactor([{"params": [parameter], "lr": 0.1, "factored": True}], weight_decay=1e-5, **OPTIONS)
        if state is not None:
            optimizer.load_state_dict(state)
        for step in steps:
            parameter.grad = torch.sin(torch.arange(float(start.numel())).view(start.shape) * (step + 1))
            optimizer.step()
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        return parameter.detach(), torch.load(file, weights_only=True)

    whole, _ = run(range(8), None, torch.ones(shape))
    half, state = run(range(5), None, torch.ones(shape))
    assert torch.equal(run(range(5, 8), state, half)[0], whole)
    assert not torch.equal(run(range(5, 8), None, half)[0], whole)


def test_adamw_takes_its_settings_from_the_recipe() -> None:
    parameter = nn.Parameter(torch.ones(2))
    config = AdamW(type="adamw", beta1=0.5, beta2=0.6, eps=1e-3)
    (group,) = build_optimizer(config, [{"params": [parameter], "lr": 0.1}], 0.2).param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.5, 0.6), 1e-3, 0.2)


def test_matrices_of_the_base_decay_and_nothing_else_of_it(bases: dict[str, Path]) -> None:
    """As every fine-tuning code since BERT's: biases and the scales of norms do not. The prompt decays as it says."""
    base = BaseHost.load(bases["gpt2"], kind="causal")
    weights = OwnWeights(base, "all")
    method = build_method(PromptTuning(type="prompt-tuning", length=2), base, length=None, generator=torch.Generator())
    train = Train(lr=0.1, base_lr=0.01, steps=1, weight_decay=0.2, base_weight_decay=0.5)
    optimizer = optimizer_of(train, method, None, weights)
    assert optimizer is not None
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(next(method.parameters()))] == 0.2
    named = dict(base.model.named_parameters())
    assert {name for name, p in named.items() if decays[id(p)] == 0} == {
        name for name in named if name.endswith("bias") or "ln_" in name
    }
    assert {decays[id(p)] for p in named.values()} == {0.0, 0.5}
    assert {group["lr"] for group in optimizer.param_groups} == {0.1, 0.01}
    numbered = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert numbered[1:] == [id(p) for p in weights.parameters], "as checkpoints number them, with or without decay"
