"""`ptq jobs`, `ptq compare` and `ptq plot` as a user runs them, on a registry with a sweep in it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
import sqlalchemy as sa
from box import PTQ, Box
from queue_helpers import add_jobs, open_registry

from orchestrator.registry import jobs as job_table
from orchestrator.registry import metrics
from orchestrator.registry.metrics import Point
from orchestrator.registry.storage.tables import jobs

LENGTHS, RATES, SEEDS = (1, 5), (0.1, 0.5), (1, 2, 3)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Box:
    """Group g1: lengths x learning rates x seeds; bleu = 10 x length + lr + seed."""
    home = tmp_path_factory.mktemp("home")
    registry = open_registry(home)
    cases = [(length, rate, seed) for length in LENGTHS for rate in RATES for seed in SEEDS]
    ids = add_jobs(registry, len(cases))
    with registry.write() as conn:
        group = job_table.add_group(conn, "sweep", user="ada", at=0.0)
        for job, (length, rate, seed) in zip(ids, cases, strict=True):
            recipe = conn.execute(sa.select(jobs.c.recipe).where(jobs.c.id == job)).scalar_one()
            recipe["method"]["length"], recipe["train"]["lr"], recipe["train"]["seeds"] = length, rate, [seed]
            recipe["task"]["metrics"] = ["bleu"]
            values = {"recipe": recipe, "seed": seed, "group_id": group}
            conn.execute(sa.update(jobs).where(jobs.c.id == job).values(values))
            points = [Point("train", "loss", step, 4.0 / step) for step in range(1, 60)]
            points += [Point("validation", "bleu", step, 10 * length + rate + seed) for step in (30, 60)]
            metrics.put(conn, job, points)
    registry.close()
    return Box(home)


def test_jobs(box: Box) -> None:
    lines = box.ok("jobs", "--where", "metrics.bleu>=53 and seed=3", "--sort", "-metrics.bleu").splitlines()
    assert lines[0].split() == ["ID", "NAME", "USER", "STATE", "METHOD", "DATASET", "BLEU"]
    assert [(line.split()[0], line.split()[-1]) for line in lines[1:]] == [("12", "53.5"), ("9", "53.1")]
    (job,) = box.json("jobs", "--where", "id=12", "--columns", "recipe.method.length,seed", "--json")
    assert (job["id"], job["fields"]) == (12, {"recipe.method.length": 5, "seed": 3})
    few = box.run("jobs", "--limit", "2")
    assert len(few.stdout.splitlines()) == 3
    assert "2 of 12 jobs" in few.stderr
    assert box.run("jobs", "--where", "seed=9").stdout == ""
    wrong = box.run("jobs", "--where", "metrics.bleu>>3")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "^" in wrong.stderr
    assert "recipe.KEY" in box.ok("jobs", "--fields")


def test_compare(box: Box) -> None:
    table = box.ok("compare", "g1").splitlines()
    assert table[0].split()[:4] == ["LENGTH", "LR", "SEEDS", "BLEU"]
    assert table[1].split()[:8] == ["5", "0.5", "3", "52.5", "±", "1", "53.5", "(3)"]
    assert table[2].split()[8:11] == ["-0.4", "0.25", "(3)"]
    assert "BEST" not in box.ok("compare", "1", "2", "--where", "seed=1").splitlines()[0]  # one seed: nothing apart
    found = box.json("compare", "g1", "--where", "seed<3", "--json")
    assert found["settings"] == ["method.length", "train.lr"]
    assert [one["seeds"] for one in found["configurations"]] == [[1, 2]] * 4
    assert found["configurations"][0]["best"]["bleu"] == {"seed": 2, "job": 11, "value": 52.5}
    grid = box.ok("compare", "g1", "--grid").splitlines()
    assert grid[0].split() == ["LENGTH", "/", "LR", "0.1", "0.5"]
    assert [line.split()[0] for line in grid[1:]] == ["1", "5"]
    assert "52.5 ± 1" in grid[2]
    for arguments, code in ((["compare"], 2), (["compare", "1", "--grid"], 2), (["compare", "77"], 3)):
        done = box.run(*arguments)
        assert (done.returncode, done.stdout) == (code, "")


def test_pictures(box: Box, tmp_path: Path) -> None:
    heat, line, bars, curves = (tmp_path / name for name in ("heat.svg", "line.svg", "bars.svg", "curves.svg"))
    box.ok("compare", "g1", "-o", str(heat))
    box.ok("compare", "--where", "recipe.train.lr=0.5", "-o", str(line))
    box.ok("compare", "1", "-o", str(bars))
    box.ok("plot", "1", "2", "-o", str(curves))
    for picture in (heat, line, bars, curves):
        assert ElementTree.parse(picture).getroot().tag.endswith("svg")
    done = box.run("compare", "g1", "-o", str(tmp_path / "x.gif"))
    assert (done.returncode, list(tmp_path.glob("x*"))) == (2, [])


def test_curves_in_the_terminal(box: Box) -> None:
    lines = box.ok("plot", "1").splitlines()
    assert lines[:2] == ["training loss", "fake (job 1)"]
    assert max(map(len, lines)) <= 80
    drawn = [line for line in lines if any("\u2800" < character <= "\u28ff" for character in line)]
    assert drawn
    assert lines[-1].split() == ["1", "59", "step"]
    assert json.dumps("validation bleu")[1:-1] in box.ok("plot", "1", "2", "--metric", "bleu")
    assert box.run("plot", "1", "--metric", "x").returncode == 2


@pytest.mark.parametrize("verb", [("jobs",), ("jobs", "--json"), ("events", "1")])
def test_a_reader_that_leaves_early_is_no_error(box: Box, verb: tuple[str, ...]) -> None:
    """`ptq jobs | head`, in a script with pipefail."""
    read, write = os.pipe()
    os.close(read)
    env = {**os.environ, "PTQ_HOME": str(box.home)}
    done = subprocess.run([*PTQ, *verb], stdout=write, stderr=subprocess.PIPE, text=True, env=env, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
