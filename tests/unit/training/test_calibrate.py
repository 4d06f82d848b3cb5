"""What a run measures of its base: plausible figures that change nothing of what is trained."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_fixtures import KINDS, make_run, recipe

from orchestrator.cost import Cost, Load
from orchestrator.jobspec import RunSpec
from orchestrator.training import calibrate
from orchestrator.training.calibrate import Measured, Point
from orchestrator.training.distributed import Processes
from orchestrator.tuning.host import BaseHost

PROMPT = {"type": "prompt-tuning", "length": 3}


def here() -> Processes:
    return Processes(None, 0, 1, torch.device("cpu"), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("base", "padding"), [("gpt2", 1e-5), ("gpt2", 0.0), ("t5", 0.0), ("bert", 0.0)])
def test_the_figures_are_those_of_the_steps(
    base: str, padding: float, bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps are run, and take as long as we say."""
    monkeypatch.setattr(calibrate, "SECONDS", 60.0)  # on a busy machine too
    host = BaseHost.load(bases[base], kind=KINDS[base])  # type: ignore[arg-type]

    def timed(probe: calibrate._Probe, point: Point) -> float:
        probe.run(point)
        padded = len(point.lengths) * max(point.lengths) - point.tokens
        labels = len(point.lengths) * point.labels
        return 0.01 + 1e-5 * point.tokens + 2e-3 * point.jobs + 1e-6 * labels + padding * padded

    monkeypatch.setattr(calibrate._Probe, "_timed", timed)
    before = host.checksum()
    cost = calibrate.calibrate(host, here(), context=64)
    assert host.checksum() == before
    assert cost.job_seconds == pytest.approx(2e-3)
    assert cost.label_seconds == pytest.approx(1e-6)
    assert cost.padding_seconds == pytest.approx(padding, rel=0.15)
    for loads in ([Load(4, 32)], [Load(1, 20), Load(9, 20)], [Load(100, 64)]):
        tokens, rows = sum(load.tokens for load in loads), sum(load.rows for load in loads)
        assert cost.seconds(loads) == pytest.approx(0.01 + 1e-5 * tokens + 2e-3 * len(loads) + 1e-6 * rows, rel=0.05)
    assert cost.bytes([Load(4, 32)]) < cost.bytes([Load(16, 32)])
    assert cost.weight_bytes == sum(tensor.numel() * 4 for tensor in host.model.parameters())
    assert cost.capacity_bytes > 1e8


def test_a_disturbed_measurement_leaves_plausible_figures(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, chance = BaseHost.load(bases["gpt2"], kind="causal"), random.Random(1)
    monkeypatch.setattr(calibrate._Probe, "_timed", lambda *_: chance.uniform(0.001, 1.0))
    cost = calibrate.calibrate(host, here(), context=64)
    few, many = Load(1, 8), Load(64, 64)
    assert 0 < cost.seconds([few]) <= cost.seconds([few, few]) <= cost.seconds([few, many])
    assert cost.slowdown([few, few]) < 10


def test_memory_is_what_autograd_keeps(bases: dict[str, Path]) -> None:
    """Twice the rows, twice the bytes; and no weight of the base is counted."""
    host = BaseHost.load(bases["gpt2"], kind="causal")
    probe = calibrate._Probe(host, here())
    two, four, eight = (probe.measure(Point((32,) * rows)).bytes for rows in (2, 4, 8))
    assert eight - four == pytest.approx(2 * (four - two), rel=0.05)
    hidden, layers = 32, 2  # of the base: each token keeps several vectors of H numbers in every layer
    assert 4 < (four - two) / (2 * 32 * 4 * hidden * layers) < 60


def test_a_straight_curve_ends_the_ladder() -> None:
    def points(*seconds: float) -> list[tuple[int, Measured]]:
        return [(64 * 4**number, Measured(value, 0.0)) for number, value in enumerate(seconds)]

    assert calibrate._is_straight(points(1.0, 4.0, 16.2))
    assert not calibrate._is_straight(points(1.0, 1.5, 3.0))
    assert not calibrate._is_straight(points(1.0, 4.0))


def test_a_run_measures_once_and_trains_the_same(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "calibrations" / "base.json"
    losses = []
    for number, wanted in enumerate([None, path, path]):
        run = make_run(tmp_path / str(number), [recipe(PROMPT)], base=bases["gpt2"], dataset=dataset)
        told = RunSpec.read(run.folder.spec)
        replace(told, calibration=None if wanted is None else str(wanted)).write(run.folder.spec)
        assert run.train() == 0
        losses.append(run.losses())
        assert path.exists() == (number > 0)
        if number == 1:
            assert Cost.read(path) is not None
            first = path.read_bytes()
    assert losses[0] == losses[1] == losses[2]
    assert path.read_bytes() == first


def test_a_base_that_takes_too_long_is_not_measured(bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    host = BaseHost.load(bases["gpt2"], kind="causal")
    ticks = itertools.count()
    monkeypatch.setattr(calibrate.time, "monotonic", lambda: 1.5 * next(ticks))
    with pytest.raises(calibrate.TooBusy, match="longer than 5 s"):
        calibrate.calibrate(host, here(), context=64)


def test_what_cannot_be_measured_costs_no_job(
    bases: dict[str, Path],
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: object, **__: object) -> Cost:
        raise RuntimeError("an architecture of its own")

    monkeypatch.setattr("orchestrator.training.run.calibrate", broken)
    run = make_run(tmp_path, [recipe(PROMPT)], base=bases["gpt2"], dataset=dataset)
    replace(RunSpec.read(run.folder.spec), calibration=str(tmp_path / "x.json")).write(run.folder.spec)
    assert run.train() == 0
    assert "could not be measured: an architecture of its own" in capsys.readouterr().out
