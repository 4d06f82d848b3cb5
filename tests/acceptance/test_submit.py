"""`ptq submit`: what it queues, and that a refusal leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import ptq
from queue_helpers import RECIPE, add_jobs, get, open_registry, recipe_file

from orchestrator.registry import jobs

PTQ = [sys.executable, "-c", "from orchestrator.cli.main import main; main()"]


def started(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PTQ, *arguments], capture_output=True, text=True, timeout=60)


@pytest.fixture
def with_rows(home: Path) -> Path:
    registry = open_registry(home)
    add_jobs(registry)  # brings the dataset rows@1
    registry.close()
    return home


def contents(home: Path) -> tuple[list[str], int]:
    registry = open_registry(home)
    with registry.read() as conn:
        count = len(jobs.list_jobs(conn))
    registry.close()
    return sorted(path.name for path in home.iterdir() if not path.name.startswith("registry.db-")), count


def test_a_group_of_seeds(with_rows: Path, tmp_path: Path) -> None:
    path = str(recipe_file(tmp_path))
    done = started("submit", path, "--set", "train.seeds=[1, 2, 3]", "--priority", "high", "--after", "1")
    assert (done.returncode, done.stdout) == (0, "group g1: jobs 2-4\n")
    assert "no worker is running here" in done.stderr
    registry = open_registry(with_rows)
    job = get(registry, 3)
    assert (job.name, job.seed, job.priority, job.after, job.group_id) == ("tiny-seed-2", 2, 100, (1,), 1)
    assert job.dataset == "rows@1"
    assert job.command[1:3] == ["submit", path]
    assert job.source == Path(path).read_text()
    assert json.loads(ptq("submit", path, "--after", "g1", "--json").stdout)["jobs"] == [5]
    assert get(registry, 5).after == (2, 3, 4)
    registry.close()


def test_a_dry_run_shows_and_writes_nothing(with_rows: Path, tmp_path: Path) -> None:
    before = contents(with_rows)
    done = ptq("submit", str(recipe_file(tmp_path)), "--dry-run", "--json", "--set", "resources.gpus=2")
    assert json.loads(done.stdout)["jobs"][0]["slots"] == 2
    assert contents(with_rows) == before


@pytest.mark.parametrize(
    ("old", "new", "options", "code", "said"),
    [
        ("{{source}}", "{{sauce}}", [], 2, "source"),
        ("lr: 0.1", "lr: 0.1, stepps: 3", [], 2, "steps"),
        ("dataset: rows", "dataset: roes", [], 3, "rows"),
        ("dataset: rows", "dataset: rows@7", [], 3, "rows"),
        ("length: 2", "length: 99", [], 2, "16"),
        ("{base}", "nothere", [], 3, "nothere"),
        ("", "", ["--after", "99"], 3, "there is no job 99"),
        ("", "", ["--set", "train.steps=no"], 2, "--set"),
        ("dataset: rows", "dataset: rows\ntracking: tensorbord", [], 2, "tensorboard"),
        ("{base}", "{{model: {base}, trust_remote_code: true}}", [], 2, "PTQ_ALLOW_REMOTE_CODE"),
    ],
)
def test_refusals_write_nothing(
    with_rows: Path, tmp_path: Path, old: str, new: str, options: list[str], code: int, said: str
) -> None:
    before = contents(with_rows)
    good = recipe_file(tmp_path).rename(tmp_path / "good.yaml")
    bad = recipe_file(tmp_path, RECIPE.replace(old, new, 1) if old else RECIPE)
    done = ptq("submit", str(good), str(bad), *options)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert contents(with_rows) == before


def test_a_tracker_that_is_not_installed_is_refused(
    with_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.recipe.tracking.find_spec", lambda _name: None)
    before = contents(with_rows)
    recipe = recipe_file(tmp_path, RECIPE.replace("dataset: rows", "dataset: rows\ntracking: [tensorboard, mlflow]"))
    done = ptq("submit", str(recipe))
    assert (done.returncode, done.stdout) == (2, "")
    assert "tensorboard and mlflow-skinny are not installed" in done.stderr
    assert "`pip install tensorboard mlflow-skinny`" in done.stderr
    assert contents(with_rows) == before


def test_trackers_for_recipes_that_name_none(with_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTQ_TRACKING", "tensorboard")
    assert ptq("submit", str(recipe_file(tmp_path))).returncode == 0
    assert ptq("submit", str(recipe_file(tmp_path)), "--set", "tracking=[]").returncode == 0
    registry = open_registry(with_rows)
    assert [get(registry, job).recipe["tracking"] for job in (2, 3)] == [["tensorboard"], []]
    registry.close()
    monkeypatch.setenv("PTQ_TRACKING", "tensorbord")
    done = ptq("submit", str(recipe_file(tmp_path)))
    assert (done.returncode, "there is no tracker 'tensorbord'" in done.stderr) == (2, True)


def test_a_refusal_in_an_empty_home_makes_no_registry(home: Path, tmp_path: Path) -> None:
    done = ptq("submit", str(recipe_file(tmp_path)))
    assert done.returncode == 3
    assert list(home.iterdir()) == []


def test_status_without_a_registry_is_friendly(home: Path) -> None:
    for arguments in ([], ["status"]):
        done = ptq(*arguments)
        assert done.returncode == 0
        assert "ptq demo" in done.stdout
    empty = {"gpus": [], "jobs": [], "reservations": [], "users": [], "paused": None}
    assert json.loads(ptq("status", "--json").stdout) == empty
    assert ptq("cancel", "1").returncode == 3
    assert list(home.iterdir()) == []
