"""The speed benchmark itself: it goes on where it was cut, says what was run, and its figures are those of the docs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.benchmarks import bench, bench_measure
from tests.benchmarks.bench_floor import Work
from tests.benchmarks.bench_measure import Measured
from tests.benchmarks.bench_memory import peak_bytes
from tests.benchmarks.bench_page import END, FIGURES
from tests.benchmarks.bench_world import Shape
from tests.benchmarks.report import RESULTS

SHAPES = [Shape("1M", 20, 32), Shape("22M", 20, 32), Shape("1M", 20, 32, jobs=4)]


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Instead of programs figures; the names of what was run."""
    ran: list[str] = []

    def program(name: str, seconds: float, megabytes: float) -> Any:
        def measured(world: Any, folder: Path, shape: Shape, *_: Any, **__: Any) -> Measured:
            ran.append(f"{name} {shape.base} {shape.jobs}")
            held = (megabytes + shape.jobs) * 2**20
            return Measured(seconds * shape.jobs, seconds / 10, held, [1.0] * shape.jobs)

        return measured

    for name, seconds, megabytes in (("ptq", 1.0, 99), ("peft_in_turn", 3.0, 500), ("peft_side_by_side", 2.0, 2000)):
        monkeypatch.setattr(bench, name, program(name, seconds, megabytes))
    monkeypatch.setattr(bench, "work_of", lambda *_: Work(100, 110, 200, 1e6, 1e3))
    monkeypatch.setattr(bench, "matmul_peak", lambda *_: 1e9)
    monkeypatch.setattr(bench, "bandwidth", lambda *_: 1e9)
    monkeypatch.setattr(bench, "_selection", lambda *_: (SHAPES, []))
    for name in ("RESULTS", "REPOSITORY"):
        monkeypatch.setattr(bench, name, tmp_path)
    monkeypatch.setattr(bench, "EXPLANATION", tmp_path / "fused-runs.md")
    bench.EXPLANATION.write_text(f"before\n{FIGURES}\nold\n{END}\nbehind\n", encoding="utf-8")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["bench"])
    return ran


def test_it_goes_on_where_it_was_cut(programs: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = bench.ptq

    def cut(world: Any, folder: Path, shape: Shape, *rest: Any) -> Measured:
        if shape.base == "22M":
            raise KeyboardInterrupt
        return whole(world, folder, shape, *rest)

    monkeypatch.setattr(bench, "ptq", cut)
    with pytest.raises(KeyboardInterrupt):
        bench.main()
    assert programs == ["ptq 1M 1", "peft_in_turn 1M 1"]
    assert not (tmp_path / "bench.md").exists()
    programs.clear()
    monkeypatch.setattr(bench, "ptq", whole)
    assert bench.main() == 0
    assert programs[0] == "ptq 22M 1"
    assert programs[-1] == "peft_side_by_side 1M 4"
    page = (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert "| 1M | 20 | 32 | 4 |" in page
    assert "100 / 103 | **1.03**" in page  # memory of one job and of four
    assert not list((tmp_path / "ptq-bench").iterdir())
    before, figures = bench.EXPLANATION.read_text(encoding="utf-8").split(FIGURES)
    figures, behind = figures.split(END)
    assert (before, behind) == ("before\n", "\nbehind\n")
    assert figures.strip() in page


def test_losses_that_differ_fail_it(programs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "peft_in_turn", lambda *_, **__: Measured(1, 1, 1, [1.001]))
    assert bench.main() == 1


def test_what_was_not_run_is_counted_from_what_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_measure, "_peft", lambda *_: Measured(3.0, 0.5, 700, [2.0]))
    shape = Shape("1M", 20, 32, jobs=64, in_turn=4)
    found = bench_measure.peft_in_turn(None, Path(), shape, 2, "cpu", lambda _: None)  # type: ignore[arg-type]
    assert found == Measured(192.0, 32.0, 700, [2.0] * 4)


def test_losses_read_at_once_are_timed_from_read_to_read() -> None:
    at = [10.0, 10.0001, 10.0002, 10.5, 10.5001, 11.0, 11.0001, 11.0002, 11.0003]
    assert bench_measure._between_reads(at) == pytest.approx(1.0003 / 6, rel=1e-3)
    with pytest.raises(ValueError, match="too few"):
        bench_measure._between_reads([1.0, 1.0001])


def test_a_programs_memory_is_its_own_peak() -> None:
    now = psutil.Process().memory_info().rss
    assert 0.9 * now <= peak_bytes() < 100 * now


def test_the_figures_of_the_docs_are_those_of_the_table() -> None:
    explanation = bench.EXPLANATION.read_text(encoding="utf-8")
    figures = explanation.split(FIGURES)[1].split(END)[0].strip()
    assert figures
    assert figures in (RESULTS / "bench.md").read_text(encoding="utf-8")
