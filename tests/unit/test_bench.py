"""The speed benchmark itself: it goes on where it was cut, says what was run, and its figures are those of the docs."""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from pretend_cuda import pretended_card

from orchestrator.training import run
from tests.benchmarks import bench, bench_floor, bench_measure, bench_page, bench_peft, bench_world
from tests.benchmarks.bench_floor import Work
from tests.benchmarks.bench_measure import Measured
from tests.benchmarks.bench_memory import peak_bytes
from tests.benchmarks.bench_page import END, FIGURES
from tests.benchmarks.bench_world import Shape, World
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
    monkeypatch.setattr(bench, "README", tmp_path / "README.md")
    for file in (bench.EXPLANATION, bench.README):
        file.write_text(f"before\n{FIGURES}\nold\n{END}\nbehind\n", encoding="utf-8")
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
    assert "4 small jobs on two CPU cores take 3.0 times less time" in bench.README.read_text(encoding="utf-8")


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
    now, found = psutil.Process().memory_info().rss, peak_bytes()
    largest = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # or that of who has started this process
    assert 0.9 * now <= found <= 1.01 * largest  # the kernel counts pages by batches


def test_the_figures_of_the_docs_are_those_of_the_table() -> None:
    explanation = bench.EXPLANATION.read_text(encoding="utf-8")
    figures = explanation.split(FIGURES)[1].split(END)[0].strip()
    assert figures
    table = (RESULTS / "bench.md").read_text(encoding="utf-8")
    assert figures in table
    readme = bench.README.read_text(encoding="utf-8")
    assert readme == bench_page.with_figures(readme, bench_page.headline(table))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT's
def test_the_benchmark_on_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that `make bench-gpu` runs, on a pretended card with a base of Llama's shape: the same losses as PEFT's."""
    monkeypatch.setitem(bench_world.GPU_BASES, "tiny", (64, 32, 2, 4, 2, 48))
    monkeypatch.setattr(bench_floor, "PRODUCTS", ((4, 4, 4),))
    monkeypatch.setitem(bench_floor.NUMBERS, "cuda", 1000)
    shape, world = Shape("tiny", 3, 12, jobs=2, steps=4, batch=2, dtype="bf16"), World(tmp_path)
    with pretended_card() as device:
        made = world.ptq_run(tmp_path, shape, threads=1, device="cuda")
        assert run.main([str(made.root)]) == 0
        mine = [float(bench_measure._reports(tmp_path, job)[-1]["values"]["loss"]) for job in range(shape.jobs)]
        assert peak_bytes() == device.peak > 0
        told = []
        for job in range(shape.jobs):
            spec = world.peft_spec(tmp_path, shape, job, threads=1, device="cuda")
            bench_peft.main(json.loads(spec.read_text(encoding="utf-8")))
            told.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
        limits = {
            "flops": {"bf16": bench_floor.matmul_peak(1, "cuda", "bf16")},
            "bandwidth": bench_floor.bandwidth(1, "cuda"),
        }
        assert device.emptied
        row: dict[str, Any] = {
            "shape": asdict(shape),
            "ptq": asdict(Measured(1.0, 0.1, 1e6, mine)),
            "peft": asdict(Measured(2.0, 0.2, 1e6, [one["losses"][-1] for one in told])),
            "beside": None,
            "work": asdict(bench_floor.work_of(world, shape)),
        }
        page = bench_page.page([row], [], limits, threads=1, device="cuda")
    assert bench_page.difference(row) < bench.AGREEMENT["cuda"]
    assert all(len(one["at"]) == shape.steps and one["at"] == sorted(one["at"]) for one in told)
    assert "pretended, CUDA" in page
    assert "| tiny | 3 | 12 | 2 | 4 |" in page
