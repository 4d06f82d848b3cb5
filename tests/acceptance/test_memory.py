"""A team's memory on really trained jobs: reproduce, aliases, warm starts, lineage, bundles between two homes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from box import Box
from safetensors.numpy import load_file

from orchestrator.errors import BadInput
from orchestrator.paths import read_json

TASK = {"type": "generate", "input": "{text}", "target": "{target}", "max_new_tokens": 3}
METHOD = {"type": "prompt-tuning", "length": 2}
TRAIN = {"steps": 3, "batch_size": 4, "lr": 0.1}


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Box:
    """Job 1, reproduced by job 2; job 3 is to start from its prompt under an alias, and waits."""
    box = Box.made(tmp_path_factory.mktemp("memory") / "home")
    box.ok("submit", box.recipe("first", task=TASK, method=METHOD, train=TRAIN, resources={"fuse": "never"}))
    assert box.ok("reproduce", "1") == "job 2\n"
    box.work()
    box.ok("artifact", "alias", "tiny@best", "1", "--why", "the only one")
    init = {"type": "artifact", "artifact": "tiny@best"}
    box.ok("submit", box.recipe("second", task=TASK, method={**METHOD, "init": init}, train=TRAIN))
    return box


def test_a_reproduced_job_leaves_the_same_prompt(box: Box) -> None:
    assert "the same prompt, bit for bit" in box.ok("reproduce", "1", "--check")
    found = box.json("reproduce", "1", "--check", "--json")
    assert (found["original"], found["repeat"], found["same"], found["differences"]) == (1, 2, True, [])
    first, second = (read_json(box.artifact(job) / "manifest.json")["files"] for job in (1, 2))
    assert first["prompt.safetensors"] == second["prompt.safetensors"]
    never = box.run("reproduce", "3", "--check")
    assert (never.returncode, never.stdout) == (3, "")


def test_a_reproduction_that_differs_says_how(box: Box) -> None:
    """The original with another torch in its facts: what both were made with is compared."""
    facts = box.artifact(1) / "artifact.json"
    kept = facts.read_bytes()
    try:
        changed = json.loads(kept)
        changed["versions"]["torch"] = "1.0"
        facts.write_text(json.dumps(changed))
        found = box.json("reproduce", "1", "--check", "--json")
        assert [one["what"] for one in found["differences"]] == ["versions.torch"]
    finally:
        facts.write_bytes(kept)


def test_what_it_ran_on_is_kept_with_the_job(box: Box) -> None:
    shown = box.json("show", "1", "--json")["environment"]
    assert shown == {key: read_json(box.artifact(1) / "artifact.json")[key] for key in shown}
    assert set(shown["versions"]) >= {"ptq", "torch", "transformers", "python", "tokenizers"}
    assert (shown["hardware"]["device"], shown["hardware"]["processes"]) == ("cpu", 1)
    assert shown["code"].startswith("sha256:")
    assert "ran on:" in box.ok("show", "1")


def test_a_warm_start_keeps_the_folder_and_the_lineage(box: Box) -> None:
    recipe = box.json("show", "3", "--json")["recipe"]
    assert recipe["method"]["init"]["path"] == [str(box.artifact(1))]
    ids = [node["id"] for node in box.json("lineage", "tiny@best", "--json")["nodes"]]
    assert ids == ["artifact:a1", "base:tiny", "dataset:tiny@1", "job:1", "job:3"]
    unknown = box.run(
        "submit",
        box.recipe(
            "none", task=TASK, method={**METHOD, "init": {"type": "artifact", "artifact": "tiny@x"}}, train=TRAIN
        ),
    )
    assert (unknown.returncode, unknown.stdout) == (3, "")


def test_a_bundle_is_used_in_another_home(box: Box, tmp_path: Path) -> None:
    box.ok("artifact", "export", "1", "--bundle", "--with-data", "-o", str(tmp_path / "b.ptq"))
    other = Box(tmp_path / "other")
    other.ok("base", "add", "same", str(box.home.parent / "base-gpt2"))
    assert other.json("artifact", "import", str(tmp_path / "b.ptq"), "--json")["ref"] == "a1"
    assert other.ok("dataset", "verify") == "tiny@1: whole\n"
    assert "base same" in other.ok("lineage", "a1")


def test_an_array_is_the_prompt_that_it_was(box: Box, tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", load_file(box.artifact(1) / "prompt.safetensors")["embeddings"])
    made = box.json(
        "artifact",
        "import",
        str(tmp_path / "p.npy"),
        "--base",
        "tiny",
        "--task-from",
        box.recipe("use", task=TASK, method=METHOD, train=TRAIN),
        "--json",
    )
    assert made["origin"]["format"] == "npy"
    first, again = (
        read_json(Path(path) / "manifest.json")["files"]["prompt.safetensors"]
        for path in (box.artifact(1), made["path"])
    )
    assert first == again
    refused = box.run("artifact", "import", str(tmp_path / "p.npy"))
    assert (refused.returncode, "--base" in refused.stderr) == (BadInput.exit_code, True)


def test_the_registry_is_whole_after_all_this(box: Box, tmp_path: Path) -> None:
    assert "the registry is whole" in box.ok("doctor")
    box.ok("backup", str(tmp_path / "b.tar"))
    back = Box(tmp_path / "back")
    back.ok("restore", str(tmp_path / "b.tar"))
    assert back.json("doctor", "--json")["whole"]
    assert [a["digest"] for a in back.json("artifact", "list", "--json")] == [
        a["digest"] for a in box.json("artifact", "list", "--json")
    ]
    assert "nothing to remove" in box.run("gc").stderr
