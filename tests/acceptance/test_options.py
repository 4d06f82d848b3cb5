"""Options and exit codes that no other file asks for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from in_process import ptq
from queue_helpers import CONFIG, FAKE_TRAINING, add_jobs, base_folder, open_registry, recipe_file, wait_until

from orchestrator.dispatch.scheduling.slots import CpuSlots
from orchestrator.dispatch.worker import Ended, Worker

FAILS = ["--set", "description=nan", "--set", "train.steps=9"]


@pytest.fixture
def with_rows(home: Path) -> Path:
    registry = open_registry(home)
    add_jobs(registry)  # brings the dataset; it waits
    registry.close()
    return home


@pytest.fixture
def fake_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker in this process starts trains nothing."""
    command: Any = lambda _spec, paths: [sys.executable, str(FAKE_TRAINING), str(paths.root)]  # noqa: E731
    monkeypatch.setattr("orchestrator.dispatch.worker.Worker", partial(Worker, command=command))


@pytest.mark.usefixtures("fake_programs")
def test_run_leaves_with_1_when_its_job_fails(with_rows: Path, tmp_path: Path) -> None:
    done = ptq("run", recipe_file(tmp_path), *FAILS, "--cpu-slots", "1")
    assert (done.returncode, "nan_loss" in done.stdout + done.stderr) == (1, True), done.stderr
    assert ptq("run", recipe_file(tmp_path), "--cpu-slots", "1").returncode == 0


def test_submit_and_wait_leaves_with_1_when_a_job_does_not_succeed(with_rows: Path, tmp_path: Path) -> None:
    """One of two seeds is cancelled while the command waits, and then the other."""
    arguments = [str(recipe_file(tmp_path)), "--set", "train.seeds=[1,2]", "--wait"]
    command = [sys.executable, "-P", "-m", "orchestrator.cli.main", "submit", *arguments]
    waiting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "group g1: jobs 2-3\n"
    assert ptq("cancel", "2").stdout == "job 2 cancelled\n"
    assert ptq("cancel", "3").stdout == "job 3 cancelled\n"
    said = waiting.communicate(timeout=60)[1]
    assert (waiting.returncode, "cancelled" in said) == (1, True), said


def test_what_is_not_finished_leaves_with_4(with_rows: Path) -> None:
    for arguments in (("artifact", "show", "1"), ("plot", "1"), ("artifact", "export", "1", "-o", "x")):
        done = ptq(*arguments, cwd=with_rows)
        assert (done.returncode, done.stdout) == (4, ""), (arguments, done.stderr)
        assert "ptq status" in done.stderr
    assert not (with_rows / "x").exists()


def test_status_watched_shows_what_changes_until_ctrl_c(with_rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert "--watch and --json do not go together" in ptq("status", "--watch", "--json").stderr
    command = [sys.executable, "-P", "-m", "orchestrator.cli.main", "status", "--watch"]
    screen, terminal = os.openpty()
    os.set_blocking(screen, False)
    watching = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal)
    seen = bytearray()

    def shows(text: bytes) -> bool:
        with suppress(BlockingIOError):
            seen.extend(os.read(screen, 1 << 16))
        return text in seen

    try:
        wait_until(lambda: shows(b"Ctrl-C leaves"), seconds=60, what="the first screen")
        registry = open_registry(with_rows)
        add_jobs(registry, user="grace")
        registry.close()
        wait_until(lambda: shows(b"grace"), seconds=60, what="the new job")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 130
        assert not shows(b"Traceback")
    finally:
        watching.kill()
        watching.wait()
        os.close(screen)
        os.close(terminal)


def test_doctor_quick_hashes_nothing_and_fix_mends(home: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": "one"}\n' * 50)
    assert ptq("dataset", "add", "d", tmp_path / "rows.jsonl").returncode == 0
    (damaged,) = (home / "store" / "datasets").glob("*/*.arrow")
    rows = damaged.read_bytes()
    damaged.chmod(0o644)
    damaged.write_bytes(rows.replace(b"one", b"two"))
    assert ptq("doctor").returncode == 1
    assert ptq("doctor", "--quick").returncode == 0
    damaged.write_bytes(rows)
    registry = open_registry(home)
    (job,) = add_jobs(registry)
    with registry.write() as conn:
        conn.exec_driver_sql(f"INSERT INTO latest_metrics VALUES ({job}, 'train', 'loss', 3, 0.5)")
    registry.close()
    told = ptq("doctor", "--quick")
    assert (told.returncode, "ptq doctor --fix" in told.stdout + told.stderr) == (1, True)
    assert ptq("doctor", "--quick", "--fix").returncode == 0
    assert json.loads(ptq("doctor", "--json").stdout)["whole"]


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the command would work with, instead of a worker."""
    made: list[dict[str, Any]] = []

    class Noted:
        def __init__(self, _registry: object, slots: Any, **options: Any) -> None:
            made.append({"slots": slots.names, **options})

        def work(self, **_: object) -> Ended:
            return Ended()

    monkeypatch.setattr("orchestrator.dispatch.worker.Worker", Noted)
    return made


def test_what_a_worker_is_told(home: Path, workers: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    cards = home.parent / "gpus.json"
    cards.write_text(json.dumps([{"uuid": f"GPU-{letter}"} for letter in "abc"]))
    monkeypatch.setenv("PTQ_FAKE_GPUS", str(cards))
    fused = ("--fuse-jobs", "3", "--fuse-slowdown", "2.5", "--fuse-turns", "--keep-warm", "10m")
    assert ptq("worker", "--gpus", "0,2", *fused).returncode == 0
    assert ptq("worker", "--cpu-slots", "2", "--until-idle").returncode == 0
    assert ptq("worker", "--keep-warm", "45").returncode == 0
    cards, slots, every = workers
    assert (cards["slots"], cards["limits"].jobs, cards["limits"].slowdown, cards["keep_warm"]) == (
        ["gpu:GPU-a", "gpu:GPU-c"], 3, 2.5, 600.0,
    )  # fmt: skip
    assert [one["turns"] for one in workers] == [True, False, False]
    assert (slots["slots"], slots["keep_warm"]) == (CpuSlots(2).names, 0.0)
    assert (every["slots"], every["keep_warm"]) == ([f"gpu:GPU-{letter}" for letter in "abc"], 45.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "0", "--cpu-slots", "1"], "give --gpus or --cpu-slots, not both"),
        (["--gpus", "0;1"], "--gpus: not a list of GPU numbers: '0;1'"),
        (["--gpus", "7"], "7"),
        (["--cpu-slots", "1", "--keep-warm", "soon"], "--keep-warm: 'soon'"),
        (["--cpu-slots", "1", "--fuse-jobs", "0"], "--fuse-jobs"),
        (["--cpu-slots", "1", "--fuse-slowdown", "0.5"], "--fuse-slowdown"),
    ],
)
def test_what_a_worker_refuses(
    home: Path, workers: list[dict[str, Any]], arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = home.parent / "gpus.json"
    cards.write_text(json.dumps([{"uuid": "GPU-a"}]))
    monkeypatch.setenv("PTQ_FAKE_GPUS", str(cards))
    done = ptq("worker", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert workers == []
    assert list(home.iterdir()) == []


def test_dataset_files_without_a_header_and_where_they_come_from(home: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("one,two\nthree,four\n")
    options = ("--columns", "a,b", "--no-header", "--origin", "typed by hand", "--json")
    added = json.loads(ptq("dataset", "add", "d", tmp_path / "rows.csv", *options).stdout)
    assert added["splits"] == {"train": 2}
    shown = json.loads(ptq("dataset", "show", "d", "--json").stdout)
    assert "typed by hand" in json.dumps(shown)
    assert "typed by hand" in ptq("dataset", "show", "d").stdout


def test_a_base_of_the_hub_at_a_revision(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached, commits = tmp_path / "hub" / "models--org--model", ["1" * 40, "2" * 40]
    for name, commit in zip(("main", "v1"), commits, strict=True):
        folder = base_folder(cached / "snapshots" / commit)
        (folder / "config.json").write_text(json.dumps({**CONFIG, "torch_dtype": name}))
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / name).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, options in {"new": [], "old": ["--revision", "v1"]}.items():
        done = ptq("base", "add", name, "org/model", *options)
        assert done.returncode == 0, done.stderr
    revisions = [json.loads(ptq("base", "show", name, "--json").stdout)["revision"] for name in ("new", "old")]
    assert revisions == commits
    assert ptq("base", "add", "none", "org/model", "--revision", "v9").returncode == 3
