"""The learning rate against transformers' own schedules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from orchestrator.recipe.schema import Train
from orchestrator.training.schedule import multiplier

THEIRS: dict[str, Any] = {
    "constant": get_constant_schedule_with_warmup,
    "linear": get_linear_schedule_with_warmup,
    "cosine": get_cosine_schedule_with_warmup,
}


@pytest.mark.parametrize("schedule", sorted(THEIRS))
@pytest.mark.parametrize(("warmup", "number"), [(0, 0), (5, 5), (0.25, 5), (20, 20), (40, 40), (1, 1)])
def test_rates_are_those_of_transformers(schedule: Any, warmup: float, number: int) -> None:
    steps, train = 20, Train(lr=1.0, steps=20, warmup=warmup, schedule=schedule)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    arguments = {} if schedule == "constant" else {"num_training_steps": steps}
    theirs = THEIRS[schedule](optimizer, num_warmup_steps=number, **arguments)
    for step in range(steps):
        # Theirs spends the first step of a warm-up at rate 0, ours is one step ahead; after it they agree.
        if step >= number:
            assert multiplier(step, train, steps, rows=10) == pytest.approx(theirs.get_last_lr()[0])
        else:
            assert multiplier(step, train, steps, rows=10) == pytest.approx((step + 1) / number)
        optimizer.step()
        theirs.step()


def test_an_exponential_rate_falls_after_each_pass_over_the_rows() -> None:
    """torch's own ExponentialLR, asked once an epoch."""
    train = Train(lr=1.0, steps=60, batch_size=3, schedule="exponential", lr_decay=0.9)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for step in range(60):
        assert multiplier(step, train, 60, rows=10) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        if (step + 1) * 3 // 10 > step * 3 // 10:
            theirs.step()


def test_every_rate_is_positive() -> None:
    for schedule in THEIRS:
        for warmup in (0, 3, 0.5, 50):
            train = Train(lr=1.0, steps=10, warmup=warmup, schedule=schedule)  # type: ignore[arg-type]
            assert all(0 < multiplier(step, train, 10, rows=10) <= 1 for step in range(10))
