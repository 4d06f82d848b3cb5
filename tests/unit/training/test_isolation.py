"""Jobs that come, go, fail, are cancelled and resumed elsewhere are what they are alone, to 1e-6 and better."""

from __future__ import annotations

from pathlib import Path

import isolation
import pytest
import torch
from isolation import difference, precision, tensors_differ
from training_fixtures import KINDS

#: Relative: of losses, of prompts, of checkpoints (the optimizer's moments too, which are squares of small gradients).
BOUNDS = {"fp64": (1e-9, 1e-9, 1e-9), "fp32": (1e-6, 1e-5, 1e-4)}


@pytest.mark.parametrize(("dtype", "base"), [("fp64", "gpt2"), ("fp32", "gpt2"), ("fp64", "bert")])
def test_nobody_notices_the_others(
    dtype: str, base: str, bases: dict[str, Path], dataset: Path, tmp_path: Path
) -> None:
    kind = KINDS[base]
    with precision(dtype):
        solos = isolation.alone(tmp_path, kind, bases[base], dataset)
        ended = list(isolation.play(tmp_path / "fused", kind, bases[base], dataset, seed=3))
    assert len(ended) == len(solos)
    for name, run, number, attempt in ended:
        solo = solos[0] if attempt == 2 else solos[number]
        found = difference(run, number, solo, attempt)
        measured = (found.loss, found.prompt, found.checkpoint)
        assert all(is_ <= bound for is_, bound in zip(measured, BOUNDS[dtype], strict=True)), (name, found)


def test_a_difference_is_seen() -> None:
    one = {"a": torch.tensor([1.0, -4.0]), "b": torch.zeros(2)}
    assert tensors_differ(one, one) == 0.0
    assert tensors_differ({**one, "a": torch.tensor([1.0, -4.00004])}, one) == pytest.approx(1e-5, rel=0.05)
    assert tensors_differ({**one, "b": torch.tensor([0.0, 1e-9])}, one) > 1
