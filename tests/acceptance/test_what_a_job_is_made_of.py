"""Tokenizer, configuration and named files are part of a job and of its artifact: whoever changes them is told."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from training_fixtures import make_base

from orchestrator.cli import main
from orchestrator.dispatch.running.start import write_job
from orchestrator.jobspec import RunSpec
from orchestrator.manifest import write_manifest
from orchestrator.paths import HomePaths, read_json
from orchestrator.registry import jobs
from orchestrator.registry.artifacts import keep_artifact, stage_artifact
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import load_settings
from orchestrator.training import run as training
from orchestrator.training.predict import Predictor

WORDS = "river\nbird\nhouse\n"
ROWS = [{"sub": "red cat", "obj_label": "river"}, {"sub": "stone", "obj_label": "bird"}] * 3


class Bench:
    """A home with a base and rows, `ptq` in this process, and the program of a run without a worker."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.near = home, home.parent
        self.patch, self._out = monkeypatch, capsys
        self.base = make_base(self.near / "base", "bert")
        self.words = self.near / "words.txt"
        self.words.write_text(WORDS)
        for split in ("train", "validation"):
            (self.near / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        assert self.ptq("base", "add", "tiny", str(self.base))[0] == 0
        files = [f"--{split}={self.near / split}.jsonl" for split in ("train", "validation")]
        assert self.ptq("dataset", "add", "facts", *files)[0] == 0

    def ptq(self, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
        self._out.readouterr()
        self.patch.setattr("sys.argv", ["ptq", *arguments])
        self.patch.setattr("sys.stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as left:
            main.main()
        return (int(left.value.code or 0), *self._out.readouterr())

    def submit(self) -> int:
        recipe = {
            "name": "facts", "base": "tiny", "dataset": "facts",
            "task": {"type": "cloze", "input": "the {sub} is [MASK]", "vocabulary": str(self.words)},
            "method": {"type": "prompt-tuning", "length": 2},
            "train": {"steps": 2, "lr": 0.1, "baseline": False, "checkpoint_every": 1},
        }  # fmt: skip
        path = self.near / "facts.yaml"
        path.write_text(json.dumps(recipe))
        code, out, error = self.ptq("submit", str(path), "--json")
        assert code == 0, error
        return int(json.loads(out)["jobs"][0])

    def train(self, job: int, attempt: int = 1) -> tuple[int, list[dict[str, Any]]]:
        """The exit code of a run of it, and its last events."""
        paths = HomePaths(self.home)
        registry = Registry.open(load_settings())
        with registry.read() as conn:
            found = jobs.get_job(conn, job)
        registry.close()
        write(paths, found, attempt)
        code = training.main([str(paths.run(attempt).root)])
        lines = paths.job(job).events.read_text().splitlines()
        return code, [event for line in lines if (event := json.loads(line))["attempt"] == attempt]

    def finish(self, job: int, without: str = "") -> None:
        """Train it, and take in what it leaves, as a worker does."""
        assert self.train(job)[0] == 0
        folder = HomePaths(self.home).job(job).artifact(1)
        if without:
            (folder / without).unlink()
            write_manifest(folder)
        registry = Registry.open(load_settings())
        staged = stage_artifact(registry.paths, folder)
        with registry.write() as conn:
            keep_artifact(conn, staged, job_id=job, attempt=1, now=0.0)
        registry.close()


def write(paths: HomePaths, job: Any, attempt: int) -> None:
    """As a worker does before it starts a run."""
    write_job(paths, replace(job, attempt=attempt), run=f"run-{attempt}")
    RunSpec(attempt, "token", [str(paths.job(job.id).root)], 1, "cpu", [], None).write(paths.run(attempt).spec)


@pytest.fixture
def bench(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(home, monkeypatch, capsys)


def other_tokenizer(folder: Path) -> None:
    """Two words change places: every text has other tokens, no weight another number."""
    path = folder / "tokenizer.json"
    text = path.read_text()
    vocabulary = json.loads(text)["model"]["vocab"]
    swapped = json.loads(text)
    swapped["model"]["vocab"] = {**vocabulary, "river": vocabulary["bird"], "bird": vocabulary["river"]}
    path.write_text(json.dumps(swapped))


def test_what_was_submitted_is_what_runs(bench: Bench) -> None:
    """The tokenizer, then the vocabulary are edited behind a job's back."""
    job = bench.submit()
    before = (bench.base / "tokenizer.json").read_bytes()
    other_tokenizer(bench.base)
    code, events = bench.train(job)
    assert code == 1
    assert events[-1]["reason"] == "base_changed"
    assert "tokenizer.json was changed" in events[-1]["message"]
    assert "`ptq retry`" in events[-1]["message"]
    code, out, _ = bench.ptq("base", "verify")
    assert (code, out) == (1, "tiny: tokenizer.json was changed\n")
    code, _, error = bench.ptq("submit", str(bench.near / "facts.yaml"))
    assert code == 2
    assert "tokenizer.json was changed since the base 'tiny' was registered" in error
    assert "ptq base add NAME PATH" in error
    code, out, _ = bench.ptq("doctor")
    assert "base tiny: tokenizer.json was changed" in out
    (bench.base / "tokenizer.json").write_bytes(before)
    assert bench.ptq("base", "verify", "tiny")[:2] == (0, "tiny: whole\n")

    bench.words.write_text(WORDS + "tree\n")
    assert f"job {job}: {bench.words} was changed since it was submitted" in bench.ptq("doctor")[1]
    code, events = bench.train(job, 2)
    assert (code, events[-1]["reason"]) == (1, "bad_recipe")
    assert f"{bench.words} was changed since the job was submitted" in events[-1]["message"]
    bench.words.write_text(WORDS)
    assert bench.train(job, 3)[0] == 0


def test_once_started_a_job_has_its_own_files(bench: Bench) -> None:
    """And its artifact has them too: what becomes of the file changes no answer."""
    job = bench.submit()
    assert bench.train(job)[0] == 0
    artifact = HomePaths(bench.home).job(job).artifact
    facts = read_json(artifact(1) / "artifact.json")
    assert (artifact(1) / "vocabulary.txt").read_text() == WORDS
    assert facts["recipe"]["task"]["vocabulary_digest"].startswith("sha256:")
    assert "tokenizer.json" in facts["base"]["companions"]
    bench.words.write_text("tree\n")
    assert bench.train(job, 2)[0] == 0
    again = read_json(artifact(2) / "artifact.json")
    assert again["metrics"] == facts["metrics"]
    assert again["samples"] == facts["samples"]


def test_an_artifact_is_used_with_what_it_was_trained_with(bench: Bench, tmp_path: Path) -> None:
    """By `ptq predict`, and from a bundle in another home, where the vocabulary's path leads nowhere."""
    job = bench.submit()
    bench.finish(job)
    rows = [{"sub": row["sub"]} for row in ROWS]
    folder = HomePaths(bench.home).job(job).artifact(1)
    said = [row["prediction"] for row in Predictor.load(folder, bench.base).predict(rows)]
    assert set(said) <= set(WORDS.split())
    bench.words.unlink()
    assert bench.ptq("reproduce", str(job))[0] == 0  # on the words that the artifact holds
    bundle = tmp_path / "facts.ptq"
    assert bench.ptq("artifact", "export", str(job), "--bundle", "-o", str(bundle))[0] == 0

    copy = shutil.copytree(bench.base, tmp_path / "copy")
    other_tokenizer(bench.base)
    asked = ["predict", str(job), "--input", "-"]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    code, _, error = bench.ptq(*asked, stdin=lines)
    assert code == 2
    assert "tokenizer.json was changed" in error
    assert "ptq base add NAME PATH" in error
    assert bench.ptq("base", "add", "whole", str(copy))[0] == 0  # as the message says
    assert bench.ptq(*asked, stdin=lines)[:2] == (0, "\n".join(said) + "\n")

    bench.patch.setenv("PTQ_HOME", str(tmp_path / "elsewhere"))
    assert bench.ptq("base", "add", "tiny", str(copy))[0] == 0
    assert bench.ptq("artifact", "import", str(bundle))[0] == 0
    assert bench.ptq("predict", "a1", "--input", "-", stdin=lines)[:2] == (0, "\n".join(said) + "\n")


def test_an_older_bundle_reads_no_file_of_this_machine(bench: Bench, tmp_path: Path) -> None:
    """It was packed without its vocabulary: the path in its recipe may be anybody's file."""
    job = bench.submit()
    bench.finish(job, without="vocabulary.txt")
    bundle = tmp_path / "facts.ptq"
    assert bench.ptq("artifact", "export", str(job), "--bundle", "-o", str(bundle))[0] == 0
    bench.patch.setenv("PTQ_HOME", str(tmp_path / "elsewhere"))
    assert bench.ptq("base", "add", "tiny", str(bench.base))[0] == 0
    assert bench.ptq("artifact", "import", str(bundle))[0] == 0
    assert bench.ptq("artifact", "verify")[:2] == (0, "a1: whole\n")
    code, _, error = bench.ptq("predict", "a1", "--input", "-", stdin='{"sub": "stone"}\n')
    assert code == 2
    assert f"a1 was imported without the words that it answers with ({bench.words})" in error
