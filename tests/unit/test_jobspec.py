"""What the worker tells the training program."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import BadInput
from orchestrator.jobspec import BaseSpec, DatasetSpec, JobSpec, RunSpec
from orchestrator.paths import read_json, write_json

BASE = BaseSpec("gpt2", "/bases/gpt2", "main", "sha256:1", "causal")
DATASET = DatasetSpec("e2e", 2, "sha256:2", "/store/2")
JOB = JobSpec(7, 3, "tiny", 1, {"name": "ü", "train": {"lr": 1e-5}}, BASE, DATASET, "/jobs/7")
RUN = RunSpec(4, "token", ["/jobs/7", "/jobs/8"], 2, "cuda", ["GPU-1", "GPU-2"], 3, time_limit_seconds=60.0)


def test_specs_survive_their_files(tmp_path: Path) -> None:
    JOB.write(tmp_path / "job.json")
    RUN.write(tmp_path / "run.json")
    assert JobSpec.read(tmp_path / "job.json") == JOB
    assert RunSpec.read(tmp_path / "run.json") == RUN


@pytest.mark.parametrize("kind", [JobSpec, RunSpec])
def test_a_spec_of_another_version_is_refused(kind: type[JobSpec] | type[RunSpec], tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    (JOB if kind is JobSpec else RUN).write(path)
    for changed in ({**read_json(path), "format": 2, "new": 1}, {}, [], None):
        write_json(path, changed)
        with pytest.raises(BadInput, match="version of ptq"):
            kind.read(path)
