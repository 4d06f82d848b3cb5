"""A job's numbers in TensorBoard, MLflow and W&B: read back with their own readers, once each, whatever happens."""

from __future__ import annotations

import json
import shutil
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_resume import interrupted_at
from training_fixtures import MadeRun, make_run, recipe

from orchestrator.jobspec import JobSpec
from orchestrator.recipe.tracking import NAMES
from orchestrator.training import trackers, tracking
from orchestrator.training.stop import STOPPED_EXIT_CODE

PROMPT = {"type": "prompt-tuning", "length": 3}
SECRET = "hunter2-and-more"
Scalars = dict[str, list[tuple[int, float]]]
#: Threads of trackers run other people's code, whose warnings are none of ours.
pytestmark = pytest.mark.filterwarnings("default")


def made(
    root: Path, bases: dict[str, Path], dataset: Path, *names: str, jobs: int = 1, attempt: int = 1, **changes: Any
) -> MadeRun:
    settings = {"train__steps": 7, "train__eval_every": 2, "tracking": list(names)} | changes
    recipes = [recipe(PROMPT, train__seeds=[seed], **settings) for seed in range(1, jobs + 1)]
    return make_run(root, recipes, base=bases["gpt2"], dataset=dataset, attempt=attempt)


def trained(run: MadeRun) -> int:
    """Until the trackers have ended too: on a busy machine that is after the run has given them up."""
    code = run.train()
    for thread in threading.enumerate():
        if thread.name in NAMES:
            thread.join(100)
    return code


def reported(run: MadeRun, job: int = 0) -> Scalars:
    """What events.jsonl says: each number once, as it was reported last."""
    found: dict[str, dict[int, float]] = {}
    for event in run.events(job):
        if event["kind"] in {"metric", "baseline"}:
            prefix, step = ("", event["step"]) if event["kind"] == "metric" else ("baseline/", 7)
            for name, value in event["values"].items():
                found.setdefault(f"{prefix}{event['split']}/{name}", {})[step] = value
    return {
        name: [(step, pytest.approx(value, rel=1e-6)) for step, value in sorted(values.items())]
        for name, values in found.items()
    }


def in_tensorboard(root: Path, name: str) -> Scalars:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(root / "tracking" / "tensorboard" / name)).Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def in_mlflow(root: Path) -> dict[str, tuple[dict[str, str], Scalars]]:
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{root / 'tracking' / 'mlflow.db'}")
    found = {}
    for one in client.search_runs([client.get_experiment_by_name(trackers.PROJECT).experiment_id]):
        history = {name: client.get_metric_history(one.info.run_id, name) for name in one.data.metrics}
        numbers = {name: [(point.step, point.value) for point in points] for name, points in history.items()}
        found[one.info.run_name] = (one.data.params, numbers)
    return found


def in_wandb(root: Path) -> dict[str, tuple[dict[str, Any], list[Scalars]]]:
    """By run: its configuration, and the numbers of each attempt's file."""
    records = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    found: dict[str, tuple[dict[str, Any], list[Scalars]]] = {}
    for file in sorted(root.glob("tracking/wandb/offline-run-*/*.wandb")):
        name, config, numbers = "", {}, {}
        for raw in leveldb_records(file.read_bytes()[7:]):
            record = records.Record.FromString(raw)
            if record.WhichOneof("record_type") == "run":
                name = record.run.display_name
                config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif record.WhichOneof("record_type") == "history":
                items = record.history.item
                row = {(*item.nested_key, item.key)[0]: json.loads(item.value_json) for item in items}
                for key, value in row.items():
                    if not key.startswith("_"):
                        numbers.setdefault(key, []).append((row["_step"], value))
        found.setdefault(name, (config, []))[1].append(numbers)
    return found


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """Of LevelDB's log format: blocks of 32 KiB, the file's own header of 7 bytes counted in the first."""
    block, at, part = 32768, 7, b""
    data = b"\0" * 7 + data
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
        _, length, kind = struct.unpack_from("<IHB", data, at)
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in {1, 4}:
            yield part
            part = b""


def test_each_job_of_a_fused_run_has_a_run_of_its_own(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    run = made(tmp_path, bases, dataset, "tensorboard", jobs=2)
    assert trained(run) == 0
    for job in (0, 1):
        assert in_tensorboard(tmp_path, f"tiny-{job + 1}") == reported(run, job)
    assert reported(run, 0)["train/loss"] != reported(run, 1)["train/loss"]
    (settings,) = (tmp_path / "tracking" / "tensorboard" / "tiny-2").glob("*/hparams.yml")
    assert {"train.seeds: '[2]'", "method.type: prompt-tuning", "job: 2"} <= set(settings.read_text().splitlines())


def resumed(root: Path, bases: dict[str, Path], dataset: Path, name: str, patch: pytest.MonkeyPatch) -> MadeRun:
    """A job that was killed after step 5 goes on from the checkpoint of step 4."""
    with patch.context() as inside:
        interrupted_at(5, inside)
        broken = made(root, bases, dataset, name)
        assert trained(broken) == STOPPED_EXIT_CODE
    shutil.rmtree(broken.jobs[0].checkpoint(5))
    stopped = time.time()
    while int(time.time()) == int(stopped):  # W&B names an attempt's folder by the second
        time.sleep(0.05)
    again = made(root, bases, dataset, name, attempt=2)
    assert trained(again) == 0
    assert again.events(kind="started")[1]["resumed_from"] == 4
    return again


def test_a_resumed_job_has_every_step_once_in_tensorboard(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = resumed(tmp_path, bases, dataset, "tensorboard", monkeypatch)
    found = in_tensorboard(tmp_path, "tiny-1")
    assert found == reported(run)
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4, 5, 6, 7]


def test_mlflow(bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    try:
        fused = made(tmp_path / "fused", bases, dataset, "mlflow", jobs=2)
        assert trained(fused) == 0
        found = in_mlflow(tmp_path / "fused")
        assert {name: numbers for name, (_, numbers) in found.items()} == {
            "tiny-1": reported(fused, 0), "tiny-2": reported(fused, 1),
        }  # fmt: skip
        assert found["tiny-2"][0]["train.seeds"] == "[2]"
        mlflow.set_tracking_uri(None)
        again = resumed(tmp_path / "again", bases, dataset, "mlflow", monkeypatch)
        assert in_mlflow(tmp_path / "again")["tiny-1"][1] == reported(again)
    finally:
        mlflow.set_tracking_uri(None)


def test_wandb_offline(bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    fused = made(tmp_path / "fused", bases, dataset, "wandb", jobs=2)
    assert trained(fused) == 0
    for number, (name, (config, attempts)) in enumerate(sorted(in_wandb(tmp_path / "fused").items())):
        assert (name, config["train.seeds"]) == (f"tiny-{number + 1}", f"[{number + 1}]")
        assert attempts == [reported(fused, number)]
    again = resumed(tmp_path / "again", bases, dataset, "wandb", monkeypatch)
    ((_, attempts),) = in_wandb(tmp_path / "again").values()
    assert [[step for step, _ in one["train/loss"]] for one in attempts] == [[1, 2, 3, 4, 5], [5, 6, 7]]
    assert attempts[1]["train/loss"] == reported(again)["train/loss"][4:]


class Broken:
    replays = False

    def __init__(self, spec: JobSpec) -> None:
        raise OSError(f"https://ann:{SECRET}@host/ refused the key {SECRET}-too\nand more")


def test_a_failing_tracker_fails_no_job(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", f"{SECRET}-too")
    monkeypatch.setitem(trackers.OPEN, "mlflow", Broken)
    run = made(tmp_path, bases, dataset, "mlflow")
    assert run.train() == 0
    (warning,) = run.events(kind="warning")
    assert warning["message"] == "mlflow: https://***@host/ refused the key ***; the job goes on without it"
    assert run.events()[-1]["kind"] == "artifact"
    assert len(run.losses()) == 7


class Hanging:
    replays = False

    def __init__(self, spec: JobSpec) -> None:
        pass

    def log(self, points: Any) -> None:
        threading.Event().wait(60)

    def finish(self) -> None:
        pass


def test_a_tracker_that_hangs_holds_up_no_job(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(tracking, "_PATIENCE", 0.2)
    monkeypatch.setattr(tracking, "LAST_PATIENCE", 0.1)
    monkeypatch.setitem(trackers.OPEN, "mlflow", Hanging)
    run = made(tmp_path, bases, dataset, "mlflow", jobs=2)
    start = time.monotonic()
    assert run.train() == 0
    assert time.monotonic() - start < 30
    ((warning,), (_,)) = run.events(0, "warning"), run.events(1, "warning")
    assert warning["message"] == "mlflow: has not taken the last numbers yet; it has until the end of the run"
    assert "tracking with mlflow" in capsys.readouterr().out
