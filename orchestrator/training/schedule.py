"""The learning rate's multiplier: a pure function of the step, so a schedule has no state to save."""

from __future__ import annotations

import math

from orchestrator.recipe.schema import Train


def multiplier(step: int, train: Train, steps: int, *, rows: int) -> float:
    """Of the learning rate at step `step` (from 0) of `steps`: linear warm-up, then constant, linear or cosine to 0, or
    less by a part after each pass over the `rows`."""
    warmup = round(train.warmup * steps) if 0 < train.warmup < 1 else int(train.warmup)
    if step < warmup:
        return (step + 1) / warmup
    if train.schedule == "constant":
        return 1.0
    if train.schedule == "exponential":
        return train.lr_decay ** (step * train.batch_size // rows)
    done = (step - warmup) / max(1, steps - warmup)
    return 1.0 - done if train.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
