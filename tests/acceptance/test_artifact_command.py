"""`ptq base` and `ptq artifact` as a user runs them; export starts a program of the tensor tower."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from in_process import ptq
from safetensors.numpy import load_file, save_file

from orchestrator.manifest import write_manifest
from orchestrator.paths import write_json
from orchestrator.recipe.bases import ORIGIN
from orchestrator.registry.artifacts import keep_artifact, stage_artifact
from orchestrator.registry.storage import tables
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import child_environment, load_settings

PROMPT = np.arange(12, dtype=np.float32).reshape(3, 4)


def started(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("ptq")), *map(str, arguments)]
    return subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=120, check=False)


def base_folder(folder: Path) -> Path:
    folder.mkdir()
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 7, "n_embd": 4, "n_layer": 1}
    (folder / "config.json").write_text(json.dumps({**config, "n_positions": 16}))
    (folder / "tokenizer.json").write_text("{}")
    save_file({"transformer.wte.weight": np.ones((7, 4), np.float32)}, folder / "model.safetensors")
    return folder


def leave_artifact(folder: Path, kind: str) -> None:
    """A finished job with its artifact, as a worker records it."""
    folder.mkdir()
    save_file({"embeddings": PROMPT}, folder / "prompt.safetensors")
    facts: dict[str, Any] = {"method": "prompt-tuning", "task": "generate", "length": 3, "seed": 7}
    facts["base"] = {"id": "tiny", "revision": "sha256:0", "fingerprint": "sha256:0", "kind": kind}
    facts["recipe"] = {"task": {"type": "generate", "input": "{source}"}}
    facts["dataset"] = {"name": "e2e", "version": 2, "digest": "sha256:1"}
    facts["metrics"] = {"validation": {"bleu": 61.25}}
    write_json(folder / "artifact.json", facts)
    write_manifest(folder)
    registry = Registry.open(load_settings(), create=True)
    staged = stage_artifact(registry.paths, folder)
    with registry.write() as connection:
        connection.execute(sa.insert(tables.datasets).values(id=1, name="e2e", created_at=0))
        connection.execute(
            sa.insert(tables.dataset_versions).values(
                id=1, dataset_id=1, version=2, digest="", fields=[], splits={}, source={}, created_at=0, created_by=""
            )
        )
        connection.execute(
            sa.insert(tables.jobs).values(
                id=1, name="j", user="ann", state="finished", result="succeeded", max_attempts=1, priority=0, slots=1,
                recipe={}, source="", command=[], seed=7, method="prompt-tuning", base={}, dataset_version_id=1,
                submitted_at=0.0,
            )
        )  # fmt: skip
        keep_artifact(connection, staged, job_id=1, attempt=1, now=0.0)
    registry.close()


def test_a_base_is_registered_listed_and_shown(home: Path, tmp_path: Path) -> None:
    folder = base_folder(tmp_path / "a model")
    done = started("base", "add", "tiny", folder)
    assert done.stdout.startswith("tiny: GPT2LMHeadModel, causal, 28 parameters\n"), done.stderr
    assert ptq("base", "list").stdout.splitlines()[1].split()[:4] == ["tiny", "causal", "GPT2LMHeadModel", "28"]
    shown = json.loads(ptq("base", "show", "tiny", "--json").stdout)
    assert (shown["name"], shown["path"], shown["kind"], shown["facts"]["vocab"]) == ("tiny", str(folder), "causal", 7)
    write_json(folder / ORIGIN, {"parent": "p", "steps": 9, "method": "lm-adapt", "dataset": "d@1", "job": 3})
    assert "made of      p, 9 steps of LM adaptation, dataset d@1, job 3" in ptq("base", "add", "late", folder).stdout
    assert "made of         p, 9 steps of LM adaptation, dataset d@1, job 3" in ptq("base", "show", "late").stdout
    missing = ptq("base", "show", "tiy")
    assert (missing.returncode, missing.stdout) == (3, "")
    assert "did you mean 'tiny'?" in missing.stderr


def test_a_pickle_is_refused(home: Path, tmp_path: Path) -> None:
    folder = base_folder(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    done = ptq("base", "add", "tiny", folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "a pickle can run code" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(home.iterdir()) == []


def test_an_artifact_is_listed_shown_verified_and_exported(home: Path, tmp_path: Path) -> None:
    folder = base_folder(tmp_path / "model")
    assert ptq("base", "add", "tiny", folder).returncode == 0
    leave_artifact(tmp_path / "artifact-1", "causal")
    (listed,) = json.loads(ptq("artifact", "list", "--json").stdout)
    assert (listed["ref"], listed["job_id"], listed["summary"]["length"]) == ("a1", 1, 3)
    shown = ptq("artifact", "show", "1").stdout
    assert "bleu 61.25 (validation)" in shown
    assert "e2e@2" in shown
    bare = ptq("artifact", "show", "1", "--neighbours")
    assert (bare.returncode, "no words are nearest" in bare.stderr) == (3, True)
    assert ptq("artifact", "verify").stdout == "a1: whole\n"
    out = tmp_path / "peft"
    done = ptq("artifact", "export", "a1", "--format", "peft", "-o", out)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert np.array_equal(load_file(out / "adapter_model.safetensors")["prompt_embeddings"], PROMPT)
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(folder)
    again = ptq("artifact", "export", "a1", "-o", out)
    assert (again.returncode, "already exists" in again.stderr) == (2, True)
    unknown = ptq("artifact", "export", "a1", "--format", "onnx", "-o", tmp_path / "x")
    assert (unknown.returncode, "vllm" in unknown.stderr) == (2, True)
    (Path(listed["path"]) / "prompt.safetensors").write_bytes(b"")
    damaged = ptq("artifact", "verify", "a1")
    assert (damaged.returncode, damaged.stdout) == (1, "a1: prompt.safetensors: differs from its hash\n")


def test_what_peft_has_no_place_for_is_said(home: Path, tmp_path: Path) -> None:
    leave_artifact(tmp_path / "artifact-1", "masked")
    done = ptq("artifact", "export", "a1", "-o", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_alias_is_removed(home: Path, tmp_path: Path) -> None:
    leave_artifact(tmp_path / "made", "causal")
    assert ptq("artifact", "alias", "e2e@best", "1").returncode == 0
    removed = ptq("artifact", "alias", "e2e@best", "--remove", "--why", "a better one comes")
    assert (removed.returncode, removed.stdout.endswith("-> nothing\n")) == (0, True)
    assert json.loads(ptq("artifact", "aliases", "--json").stdout) == []
    assert "a better one comes" in ptq("artifact", "aliases", "e2e@best").stdout
    assert ptq("artifact", "show", "e2e@best").returncode == 3
    assert ptq("artifact", "alias", "e2e@best", "--remove").returncode == 3
