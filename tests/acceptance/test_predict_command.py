"""`ptq predict` with several artifacts: their ensemble, and a prediction that goes on where it was interrupted."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from queue_helpers import keep_trained, open_registry
from training_fixtures import make_base, make_dataset, make_run, recipe

from orchestrator.cli import main
from orchestrator.cli.output.predict_output import Unfinished
from orchestrator.paths import read_json
from orchestrator.registry import runs
from orchestrator.registry.artifacts import get_artifact
from orchestrator.registry.storage import tables
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import load_settings
from orchestrator.training.predict import Predictor

TEXTS = ["red cat", "green house and blue river", "black stone", "white bird", "red tree and red cat", "house"]


PATTERNED = {"warm": ["river"], "cold": ["blue"]}


@pytest.fixture
def artifacts(home: Path, tmp_path: Path) -> list[Path]:
    """Two jobs' artifacts that choose among labels, one that writes, and two of PET's patterns."""
    base, dataset = make_base(tmp_path / "base", "gpt2"), make_dataset(tmp_path / "data")
    task = {"type": "classify", "labels": {"warm": ["warm"], "cold": ["cold"]}, "input": "the {text} is "}
    method = {"type": "prompt-tuning", "length": 3}
    labels = [{**recipe(method, train__seeds=[seed], train__steps=2), "task": task} for seed in (1, 2)]
    patterns = [{**task, "input": text, "labels": PATTERNED} for text in ("the {text} is ", "{text} and the ")]
    pet = [recipe({"type": "pet", "weights": "accuracy"}, task=one) for one in patterns]
    for one in pet:
        del one["train"]["steps"], one["train"]["lr"]
    run = make_run(tmp_path / "run", [*labels, recipe(method, train__steps=1), *pet], base=base, dataset=dataset)
    assert run.train() == 0
    folders = [job.artifact(1) for job in run.jobs]
    keep_trained(home, base, folders)
    return folders


def ptq(monkeypatch: pytest.MonkeyPatch, *arguments: str, stdin: str = "") -> int:
    monkeypatch.setattr("sys.argv", ["ptq", *arguments])
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    with pytest.raises(SystemExit) as left:
        main.main()
    return int(left.value.code or 0)


def test_an_ensemble_goes_on_where_it_was_interrupted(
    artifacts: list[Path],
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, rows = tmp_path / "out.jsonl", [{"text": text} for text in TEXTS]
    registry = open_registry(home)
    digests = [get_artifact(registry, name).digest for name in ("1", "a2")]
    registry.close()
    answers = list(Predictor.load(artifacts[0], tmp_path / "base", artifacts[1]).answers(rows))
    with Unfinished.open(output, digests, rows) as unfinished:  # as an earlier command left it
        for found in answers[:2]:
            unfinished.keep(json.dumps([vars(one) for one in found]) + "\n")
        unfinished.keep(json.dumps([]))  # torn: without the end of its line
    asked = ["predict", "1", "a2", "--input", "-", "-o", str(output), "--ensemble", "mean"]
    assert ptq(monkeypatch, *asked, stdin="".join(json.dumps(row) + "\n" for row in rows)) == 0
    assert "2 of 6 rows are in" in capsys.readouterr().err
    assert not unfinished.path.exists()
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["text"] for row in found] == TEXTS
    for row, (one, two) in zip(found, answers, strict=True):
        assert list(row) == ["text", "prediction", "probabilities", "predictions"]
        assert row["predictions"] == {"a1": one.text, "a2": two.text}
        assert one.probabilities is not None
        assert two.probabilities is not None
        expected = {label: (one.probabilities[label] + two.probabilities[label]) / 2 for label in ("warm", "cold")}
        assert row["probabilities"] == pytest.approx(expected, rel=1e-5)
        assert row["prediction"] == max(row["probabilities"], key=row["probabilities"].get)


def test_patterns_count_by_what_they_got_right(
    artifacts: list[Path],
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The answers are all there, from an earlier command."""
    right = [read_json(folder / "artifact.json")["patterns"][0]["accuracy"] for folder in artifacts[3:]]
    assert right[0] != right[1]
    rows = [{"text": text} for text in TEXTS]
    registry = open_registry(home)
    digests = [get_artifact(registry, name).digest for name in ("a4", "a5")]
    registry.close()
    said = list(Predictor.load(artifacts[3], tmp_path / "base", artifacts[4]).answers(rows))
    output = tmp_path / "out.jsonl"
    with Unfinished.open(output, digests, rows) as unfinished:
        for answers in said:
            unfinished.keep(json.dumps([vars(one) for one in answers]) + "\n")
    asked = ["predict", "4", "5", "--input", "-", "-o", str(output), "--ensemble", "weighted"]
    assert ptq(monkeypatch, *asked, stdin="".join(json.dumps(row) + "\n" for row in rows)) == 0
    found = [json.loads(line) for line in output.read_text().splitlines()]
    for row, answers in zip(found, said, strict=True):
        each = [one.probabilities or {} for one in answers]
        powers = {
            label: math.prod(one[label] ** (part / sum(right)) for one, part in zip(each, right, strict=True))
            for label in ("warm", "cold")
        }
        expected = {label: power / sum(powers.values()) for label, power in powers.items()}
        assert row["probabilities"] == pytest.approx(expected, rel=1e-4)
    for verb in (["artifact", "show", "a4"], ["show", "4"]):
        assert ptq(monkeypatch, *verb) == 0
        shown = capsys.readouterr().out
        assert f"     1  {right[0]:>13.4g}  the {{text}} is" in shown
        assert ptq(monkeypatch, *verb, "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert told.get("summary", told)["patterns"] == [{"input": "the {text} is ", "accuracy": right[0], "weight": 1}]


def test_what_cannot_be_is_said_before_anything_starts(
    artifacts: list[Path], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_json(artifacts[2] / "artifact.json")["task"] == "generate"
    refused = {
        ("1", "--ensemble", "vote"): "one artifact is no ensemble",
        ("1", "3", "--ensemble", "mean"): "do not all choose among the same labels",
        ("4", "2", "--ensemble", "weighted"): "a2 does not know how right its patterns were before training",
        ("1", "--json", "--csv"): "do not go together",
    }
    for arguments, said in refused.items():
        assert ptq(monkeypatch, "predict", *arguments, "--input", "-", stdin='{"text": "cat"}\n') == 2
        assert said in capsys.readouterr().err
    registry = open_registry(home)
    with registry.write() as conn:
        elsewhere = {"base": {"id": "other", "fingerprint": "sha256:1"}}
        conn.execute(sa.update(tables.artifacts).where(tables.artifacts.c.id == 2).values(summary=elsewhere))
    registry.close()
    # Said before the rows are read: of two bases nobody has rows that suit both.
    assert ptq(monkeypatch, "predict", "1", "2", "--input", "-", stdin='{"words": "cat"}\n') == 2
    assert "a1 was trained on tiny, a2 on other" in capsys.readouterr().err


def test_a_card_is_used_when_asked_for_and_nobody_is_stepped_on(
    artifacts: list[Path],
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """On cards that a file stands for; in the program's place something that looks at what it is given."""
    (tmp_path / "gpus.json").write_text(json.dumps([{"uuid": "GPU-a", "processes": [{"pid": 1, "user": "bob"}]}, {}]))
    monkeypatch.setenv("PTQ_FAKE_GPUS", str(tmp_path / "gpus.json"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    started: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def watched(module: str, spec: dict[str, Any], **options: Any) -> Iterator[Any]:
        with Registry.open(load_settings()).read() as conn:
            held = [lease.slot for lease in runs.live_leases(conn)]
        cards = options["cards"]
        started.append({"device": spec["device"], "gpus": spec["gpus"], "held": held, "cards": dict(cards)})
        answer = json.dumps([{"text": "warm", "probabilities": None}])
        yield SimpleNamespace(stdin=io.StringIO(), stdout=io.StringIO(answer + "\n"), returncode=0)

    def asked(*options: str) -> int:
        return ptq(monkeypatch, "predict", "1", "--input", "-", *options, stdin='{"text": "cat"}\n')

    monkeypatch.setattr("orchestrator.cli.predict.program", watched)
    assert asked() == 0
    assert "on the CPU with 1 thread: `--gpu` reserves a free GPU" in capfd.readouterr().err
    assert started.pop() == {"device": "cpu", "gpus": [], "held": [], "cards": {"CUDA_VISIBLE_DEVICES": ""}}
    assert asked("--gpu") == 0
    said = capfd.readouterr()
    assert said.out == "warm\n"
    assert "reservation r1: gpu:GPU-fake-1 for as long as this runs" in said.err
    assert "reservation r1 released" in said.err
    cards = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "GPU-fake-1"}
    held = ["gpu:GPU-fake-1"]
    assert started.pop() == {"device": "cuda", "gpus": ["GPU-fake-1"], "held": held, "cards": cards}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-fake-1")  # granted: nothing more is reserved
    assert asked() == 0
    assert "on GPU GPU-fake-1, which CUDA_VISIBLE_DEVICES names" in capfd.readouterr().err
    assert started.pop() == {"device": "cuda", "gpus": ["GPU-fake-1"], "held": [], "cards": cards}
    for number, mine in (("1", cards), ("1,0", cards), ("GPU-f", cards), ("MIG-of-some-card", {})):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", number)
        assert asked() == 0
        assert started.pop()["cards"] == mine  # the card that was looked at, however CUDA would count
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a")
    assert asked() == 2
    assert "gpu:GPU-a is in use: bob, pid 1" in capfd.readouterr().err
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert asked("--gpu") == 2
    assert "it hides all GPUs" in capfd.readouterr().err
    assert started == []
