"""Aliases with their audit trail, lineage, and clearing the store away."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from queue_helpers import DIGEST, base_folder
from registry_helpers import add_dataset, finished_job, registry_at

from orchestrator.cli.lineage import as_json, dot, mermaid, text
from orchestrator.data.rows import ReadOptions
from orchestrator.data.staging import stage
from orchestrator.errors import BadInput, NotFound
from orchestrator.registry import aliases, artifacts
from orchestrator.registry.artifacts import get_artifact
from orchestrator.registry.bases import add_base
from orchestrator.registry.care import gc
from orchestrator.registry.datasets import get_version, verify
from orchestrator.registry.lineage import lineage
from orchestrator.registry.storage.engine import Registry

ROWS = [{"source": f"s{i}", "target": f"t{i}"} for i in range(5)]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """e2e@1 -> job 1 -> a1 -> job 2 (starts from a1) -> a2."""
    registry = registry_at(tmp_path / "home")
    version = add_dataset(registry, tmp_path, "e2e", ROWS)
    first = finished_job(registry, tmp_path / "jobs", version)
    init = {"type": "prompt", "path": [str(first.path)], "weights": None}
    finished_job(registry, tmp_path / "jobs", version, number=0.7, init=init)
    return registry


def test_an_alias_moves_and_its_moves_are_kept(registry: Registry) -> None:
    assert aliases.set_alias(registry, "e2e@best", "1", user="ann", now=1.0, why="first") is not None
    assert get_artifact(registry, "e2e@best").ref == "a1"
    assert aliases.set_alias(registry, "e2e@best", "a1", user="bob", now=2.0) is None
    aliases.set_alias(registry, "e2e@best", "a2", user="bob", now=3.0, why="better")
    aliases.set_alias(registry, "e2e@prod", "e2e@best", user="bob", now=4.0)
    assert [(one.name, one.ref) for one in aliases.list_aliases(registry)] == [("e2e@best", "a2"), ("e2e@prod", "a2")]
    aliases.remove_alias(registry, "e2e@best", user="ann", now=5.0, why="gone")
    first, second = get_artifact(registry, "a1").digest, get_artifact(registry, "a2").digest
    assert [(m.from_digest, m.to_digest, m.user, m.why) for m in aliases.history(registry, "e2e@best")] == [
        (None, first, "ann", "first"),
        (first, second, "bob", "better"),
        (second, None, "ann", "gone"),
    ]
    with pytest.raises(NotFound):
        get_artifact(registry, "e2e@best")
    for name in ("e2e", "e2e@2", "e2e@", "a b@c", "x@" + "y" * 30):
        with pytest.raises(BadInput, match="cannot be an alias"):
            aliases.set_alias(registry, name, "a1", user="ann", now=1.0)
    with pytest.raises(NotFound, match="did you mean 'e2e@prod'"):
        aliases.history(registry, "e2e@prd")


def test_lineage_from_every_side(registry: Registry) -> None:
    chain = ["artifact:a1", "artifact:a2", "base:tiny", "dataset:e2e@1", "job:1", "job:2"]
    for thing in ("a1", "1", get_artifact(registry, "a1").digest):
        assert sorted(node.id for node in lineage(registry, thing).nodes) == chain
    for thing in ("e2e", "e2e@1"):  # the base is no part of what came of the rows
        assert [node.id for node in lineage(registry, thing).nodes] == [one for one in chain if one != "base:tiny"]
    last = lineage(registry, "a2")
    assert [(edge["from"], edge["to"], edge["how"]) for edge in as_json(last)["edges"]] == [
        ("job:2", "artifact:a2", ""),
        ("base:tiny", "job:2", ""),
        ("dataset:e2e@1", "job:2", ""),
        ("artifact:a1", "job:2", "warm start"),
        ("job:1", "artifact:a1", ""),
        ("base:tiny", "job:1", ""),
        ("dataset:e2e@1", "job:1", ""),
    ]
    with pytest.raises(NotFound, match="no artifact, job, dataset or base 'nothing'"):
        lineage(registry, "nothing")


def test_lineage_goes_on_through_a_base_that_was_adapted(registry: Registry, tmp_path: Path) -> None:
    def base(name: str, job: int) -> None:
        folder = base_folder(tmp_path / name, float(job))
        origin = {"parent": "tiny", "fingerprint": DIGEST, "method": "lm-adapt", "steps": 100, "job": job}
        (folder / "origin.json").write_text(json.dumps(origin | {"dataset": "e2e@1"}))
        add_base(registry, name, str(folder), user="ann", now=5.0)

    finished_job(registry, tmp_path / "jobs", get_version(registry, "e2e@1"), number=0.9, method="lm-adapt")
    base("adapted", 3)
    base("from-elsewhere", 2)  # its job 2 was another registry's: here that is one of prompt-tuning
    chain = ["artifact:a3", "base:adapted", "base:tiny", "dataset:e2e@1", "job:3"]
    assert sorted(node.id for node in lineage(registry, "adapted").nodes) == chain
    assert "base:adapted" in {node.id for node in lineage(registry, "3").nodes}
    (edge,) = lineage(registry, "from-elsewhere").edges
    assert (edge.source.id, edge.how) == ("base:tiny", "100 steps of LM adaptation")


def test_lineage_as_text_graphviz_and_mermaid(registry: Registry) -> None:
    aliases.set_alias(registry, "e2e@best", "a1", user="ann", now=1.0)
    graph = lineage(registry, "a1")
    lines = text(graph)
    digest = get_artifact(registry, "a1").digest[7:19]
    assert lines[0] == f"artifact a1 prompt-tuning, e2e@best [{digest}]"
    assert lines[3].startswith("└─ job 1 fake: prompt-tuning, seed 1, succeeded")
    assert any("job 2" in line and "(warm start)" in line for line in lines[lines.index("came of it") :])
    picture = dot(graph)
    assert picture.count("->") == len(graph.edges) == mermaid(graph).count("-->")
    assert '"artifact:a1" -> "job:2" [label="warm start"]' in picture


def age(path: Path, seconds: float) -> None:
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - seconds))


def test_clearing_away_takes_what_nothing_names_and_is_old(registry: Registry, tmp_path: Path) -> None:
    store = registry.paths.store
    known = {path for kind in ("datasets", "artifacts") for path in (store / kind).iterdir()}
    for path in known:
        age(path, 1e6)
    unnamed, young = store / "datasets" / ("a" * 64), store / "artifacts" / ("b" * 64)
    left, trash = store / ".staging-0123", store / "artifacts" / ".gc-0123"
    for path in (unnamed, young, left, trash):
        path.mkdir()
        (path / "file").write_text("12345")
    age(unnamed, 7200)
    age(left, 7200)
    now = young.stat().st_mtime + 60
    found = gc.find_garbage(registry, now=now)
    assert {item.path: item.bytes for item in found} == {unnamed: 5, left: 5, trash: 5}
    assert unnamed.exists()
    with stage(registry.paths, {"train": [tmp_path / "e2e.jsonl"]}, ReadOptions()) as staged:
        age(staged.folder, 1e6)  # a dataset that takes long to read
        gc.collect(registry, now=now)
        assert staged.folder.is_dir()
    assert not any(path.exists() for path in (unnamed, left, trash))
    assert young.is_dir()
    assert all(path.is_dir() for path in known)
    assert artifacts.verify(get_artifact(registry, "a1")) == []
    assert verify(add_dataset(registry, tmp_path, "e2e", ROWS)) == []


def test_rows_that_lie_there_unnamed_are_young_when_they_are_named(registry: Registry, tmp_path: Path) -> None:
    """Placed by a command that was killed, found again by the next: nothing clears them away in between."""
    version = add_dataset(registry, tmp_path, "other", ROWS)
    age(version.path, 1e6)
    before = version.path.stat().st_mtime
    assert add_dataset(registry, tmp_path, "third", ROWS).path == version.path
    assert version.path.stat().st_mtime > before + 1e5
