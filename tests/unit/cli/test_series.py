"""What is drawn of a job's numbers."""

from __future__ import annotations

import pytest

from orchestrator.cli.output.series import smoothed


def test_the_running_mean_does_not_lag() -> None:
    line = [3.0 - 0.5 * step for step in range(60)]
    assert smoothed(line) == pytest.approx(line)  # a mean over the last values would lie above it throughout


def test_the_running_mean_is_over_so_many_values() -> None:
    bump = [0.0] * 20 + [25.0] + [0.0] * 20
    assert smoothed(bump, 5) == pytest.approx([0.0] * 18 + [5.0] * 5 + [0.0] * 18)
    assert smoothed([7.0], 5) == [7.0]
    assert smoothed([], 5) == []
