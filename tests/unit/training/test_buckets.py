"""Rows that must be padded, in forwards of like length: fewer padded tokens, the same losses and prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_fixtures import make_run, recipe

from orchestrator.training import step as steps
from orchestrator.training.objectives import Example
from orchestrator.training.step import Part, by_length
from orchestrator.tuning.rows import Row


def piece(*lengths: int) -> tuple[Any, Part]:
    made = [Example(Row([5] * length, [6], 0), 1) for length in lengths]
    return object(), Part(made, list(range(len(made))), 1.0)


def test_rows_are_cut_where_padding_costs_more_than_a_forward() -> None:
    short, long = piece(10, 12, 9), piece(400, 11, 380)
    first, second = by_length([short, long])
    assert [(w, part.positions) for w, part in first] == [(long[0], [0, 2])]
    assert [(w, part.positions) for w, part in second] == [(short[0], [0, 1, 2]), (long[0], [1])]
    assert by_length([piece(10, 12, 9, 11)])[0][0][1].positions == [0, 1, 2, 3]


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_losses_and_prompts_stay_what_they_are(
    method: str, bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [recipe({"type": method, "length": 3}), recipe({"type": method, "length": 5}, train__seeds=[4])]
    sizes: list[tuple[int, ...]] = []
    forward = steps.forward

    def counted(host: Any, batch: Any, *rest: Any, **more: Any) -> Any:
        sizes.append(tuple(batch.input_ids.shape))
        return forward(host, batch, *rest, **more)

    monkeypatch.setattr(steps, "forward", counted)
    found = []
    for worth in (steps.TOKENS_WORTH_A_FORWARD, 1):
        monkeypatch.setattr(steps, "TOKENS_WORTH_A_FORWARD", worth)
        sizes.clear()
        made = make_run(tmp_path / str(worth), recipes, base=bases["t5"], dataset=dataset, kind="seq2seq")
        assert made.train() == 0
        found.append((made, len(sizes), sum(rows * width for rows, width in sizes)))
    (whole, forwards, tokens), (cut, more, fewer) = found
    assert forwards == 6
    assert more > 6
    assert fewer < 0.85 * tokens
    for job in (0, 1):
        assert cut.losses(job) == pytest.approx(whole.losses(job), rel=1e-6)
        one, other = (load_file(m.jobs[job].artifact(1) / "prompt.safetensors") for m in (cut, whole))
        for name, tensor in other.items():
            torch.testing.assert_close(one[name], tensor, rtol=2e-4, atol=2e-5)
