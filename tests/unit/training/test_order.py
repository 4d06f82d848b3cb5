"""The order of rows: a pure function of seed and step."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.recipe.schema import Train
from orchestrator.training import order
from orchestrator.training.order import batch_rows, mixed_seed, total_steps

SIZES = {"seed": st.integers(0, 2**31 - 1), "rows": st.integers(1, 50), "batch_size": st.integers(1, 60)}


@given(epochs=st.integers(1, 4), **SIZES)
def test_every_epoch_visits_every_row_once(epochs: int, seed: int, rows: int, batch_size: int) -> None:
    steps = -(-rows * epochs // batch_size)
    visited = [n for step in range(steps) for n in batch_rows(step, seed=seed, rows=rows, batch_size=batch_size)]
    for epoch in range(epochs):
        assert sorted(visited[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


@given(step=st.integers(0, 10**6), **SIZES)
def test_a_position_is_one_number(step: int, seed: int, rows: int, batch_size: int) -> None:
    """Whatever was asked before, and in whatever steps: rows k to k+n are the same."""
    batch = batch_rows(step, seed=seed, rows=rows, batch_size=batch_size)
    batch_rows(step + 1, seed=seed, rows=rows, batch_size=batch_size)
    singles = [batch_rows(step * batch_size + i, seed=seed, rows=rows, batch_size=1)[0] for i in range(batch_size)]
    assert batch == singles


def test_an_order_is_drawn_once_however_many_jobs_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 40 jobs in turn, each over the ends of three passes."""
    drawn: list[tuple[int, int]] = []
    permutation = order.permutation

    def counted(seed: int, epoch: int, rows: int) -> Any:
        drawn.append((seed, epoch))
        return permutation(seed, epoch, rows)

    monkeypatch.setattr(order, "permutation", counted)
    jobs = [order.Passes(seed, 10) for seed in range(40)]
    found = [[one.batch(step, 4) for one in jobs] for step in range(7)]
    assert len(drawn) == len(set(drawn)) == 40 * 3
    expected = [[batch_rows(step, seed=seed, rows=10, batch_size=4) for seed in range(40)] for step in range(7)]
    assert found == expected


def test_epochs_and_seeds_differ_in_their_order() -> None:
    orders = {tuple(batch_rows(epoch, seed=seed, rows=40, batch_size=40)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@given(st.lists(st.lists(st.integers(0, 100), min_size=1, max_size=4), min_size=2, max_size=9, unique_by=tuple))
def test_uses_of_randomness_have_seeds_of_their_own(uses: list[list[int]]) -> None:
    assert len({mixed_seed(1, *use) for use in uses}) == len(uses)


@pytest.mark.parametrize(
    ("given_", "rows", "expected"),
    [
        ({"steps": 7}, 1000, 7),
        ({"epochs": 1, "batch_size": 10}, 100, 10),
        ({"epochs": 1.1, "batch_size": 10}, 100, 11),  # in binary fractions 110.00000000000001 rows
        ({"epochs": 0.001, "batch_size": 10}, 100, 1),
        ({"epochs": 3, "batch_size": 16}, 10, 2),
        ({"epochs": 2.5, "batch_size": 4}, 10, 7),
    ],
)
def test_epochs_are_rounded_up_to_steps(given_: dict[str, Any], rows: int, expected: int) -> None:
    assert total_steps(Train(lr=0.1, **given_), rows) == expected
