"""Jobs that come, go, fail, are cancelled and resumed elsewhere are what they are alone, to 1e-6 and better."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import every_method
import isolation
import pytest
import torch
from isolation import difference, precision, tensors_differ
from training_fixtures import KINDS, recipe

from orchestrator.dispatch.scheduling.fusing import FROZEN_BASE_METHODS, alone_because
from orchestrator.recipe.methods import Method

#: Relative: of losses, of prompts, of checkpoints (the optimizer's moments too, which are squares of small gradients).
BOUNDS = {"fp64": (1e-9, 1e-9, 1e-9), "fp32": (1e-6, 1e-5, 1e-4)}


CASTS: dict[str, Any] = {"mixed": isolation.mixed, "every": every_method.every}


@pytest.mark.parametrize(
    ("cast", "dtype", "base"),
    [
        ("mixed", "fp64", "gpt2"), ("mixed", "fp32", "gpt2"),
        ("every", "fp64", "gpt2"), ("every", "fp64", "bert"), ("every", "fp64", "t5"),
    ],
)  # fmt: skip
def test_nobody_notices_the_others(cast: str, dtype: str, base: str, bases: dict[str, Path], tmp_path: Path) -> None:
    kind, dataset = KINDS[base], every_method.make_rows(tmp_path / "data")
    jobs = CASTS[cast](kind)
    with precision(dtype):
        solos = isolation.alone(tmp_path, kind, bases[base], dataset, jobs)
        ended = list(isolation.play(tmp_path / "fused", kind, bases[base], dataset, 3, jobs))
    assert len(ended) == len(solos)
    for name, run, number, attempt in ended:
        solo = solos[0] if attempt == 2 else solos[number]
        found = difference(run, number, solo, attempt)
        measured = (found.loss, found.prompt, found.checkpoint)
        assert all(is_ <= bound for is_, bound in zip(measured, BOUNDS[dtype], strict=True)), (name, found)


def test_every_method_is_among_them_or_says_why_it_has_no_company() -> None:
    seen = {one["method"]["type"] for cast in CASTS.values() for kind in KINDS.values() for one in cast(kind)}
    alone = {
        name: alone_because(recipe({"type": name}) | {"resources": {}})
        for name in (get_args(one.model_fields["type"].annotation)[0] for one in get_args(get_args(Method)[0]))
        if name not in seen
    }
    assert seen == FROZEN_BASE_METHODS
    assert set(alone) == {"autoprompt", "fine-tuning", "lora", "lm-adapt"}
    assert all(alone.values())


def test_a_difference_is_seen() -> None:
    one = {"a": torch.tensor([1.0, -4.0]), "b": torch.zeros(2)}
    assert tensors_differ(one, one) == 0.0
    assert tensors_differ({**one, "a": torch.tensor([1.0, -4.00004])}, one) == pytest.approx(1e-5, rel=0.05)
    assert tensors_differ({**one, "b": torch.tensor([0.0, 1e-9])}, one) > 1
