"""What jobs left: copied whole, recorded once, found by id, job or digest."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from orchestrator.errors import BadData, BadInput, NotFinished, NotFound, StaleAttempt
from orchestrator.manifest import write_manifest
from orchestrator.paths import write_json
from orchestrator.registry import artifacts
from orchestrator.registry.artifacts import get_artifact, keep_artifact, list_artifacts, stage_artifact
from orchestrator.registry.care.gc import collect
from orchestrator.registry.storage import tables
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import load_settings


@pytest.fixture
def registry(home: Path) -> Registry:
    registry = Registry.open(load_settings(), create=True)
    job = {
        "name": "j",
        "user": "ann",
        "max_attempts": 1,
        "priority": 0,
        "slots": 1,
        "recipe": {},
        "source": "",
        "command": [],
    }
    job |= {"seed": 0, "method": "prompt-tuning", "base": {}, "dataset_version_id": 1, "submitted_at": 0.0}
    version = {"dataset_id": 1, "version": 1, "digest": "", "fields": [], "splits": {}, "source": {}, "created_at": 0}
    with registry.write() as connection:
        connection.execute(sa.insert(tables.datasets).values(id=1, name="d", created_at=0))
        connection.execute(sa.insert(tables.dataset_versions).values(id=1, created_by="", **version))
        connection.execute(sa.insert(tables.jobs).values(id=1, state="finished", result="succeeded", **job))
        connection.execute(sa.insert(tables.jobs).values(id=2, state="finished", result="failed", **job))
        connection.execute(sa.insert(tables.jobs).values(id=3, state="running", **job))
    return registry


def artifact_folder(folder: Path, content: bytes = b"prompt") -> Path:
    folder.mkdir(parents=True)
    (folder / "prompt.safetensors").write_bytes(content)
    facts = {
        "method": "prompt-tuning",
        "metrics": {"validation": {"accuracy": 0.5}},
        "recipe": {"a": 1},
        "samples": [1],
    }
    write_json(folder / "artifact.json", facts)
    write_manifest(folder)
    return folder


def keep(registry: Registry, folder: Path, job_id: int = 1, attempt: int = 1) -> int:
    staged = stage_artifact(registry.paths, folder)
    with registry.write() as connection:
        return keep_artifact(connection, staged, job_id=job_id, attempt=attempt, now=9.0)


def test_it_is_copied_and_found(registry: Registry, tmp_path: Path) -> None:
    folder = artifact_folder(tmp_path / "artifact-1")
    artifact_id = keep(registry, folder)
    found = get_artifact(registry, f"a{artifact_id}")
    assert [found] == list_artifacts(registry)
    assert found == get_artifact(registry, "1") == get_artifact(registry, found.digest)
    assert found == get_artifact(registry, found.digest.removeprefix("sha256:")[:10])
    assert (found.job_id, found.job_name, found.attempt, found.method) == (1, "j", 1, "prompt-tuning")
    assert found.summary == {"method": "prompt-tuning", "metrics": {"validation": {"accuracy": 0.5}}}
    assert found.bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert (found.path / "prompt.safetensors").read_bytes() == b"prompt"
    assert artifacts.verify(found) == []


def test_keeping_again_changes_nothing(registry: Registry, tmp_path: Path) -> None:
    folder = artifact_folder(tmp_path / "artifact-1")
    assert keep(registry, folder) == keep(registry, folder)
    with pytest.raises(StaleAttempt, match="attempt 1"):
        keep(registry, artifact_folder(tmp_path / "artifact-2", b"other"), attempt=2)
    assert len(list_artifacts(registry)) == 1


def test_two_jobs_may_leave_the_same_bytes(registry: Registry, tmp_path: Path) -> None:
    folder = artifact_folder(tmp_path / "artifact-1")
    assert keep(registry, folder, job_id=1) != keep(registry, folder, job_id=2)
    first, second = list_artifacts(registry)
    assert first.path == second.path
    assert get_artifact(registry, first.digest).digest == first.digest


@pytest.mark.parametrize("damage", ["no manifest", "changed", "added", "no facts", "not there"])
def test_what_is_not_whole_is_refused(registry: Registry, tmp_path: Path, damage: str) -> None:
    folder = artifact_folder(tmp_path / "artifact-1")
    match damage:
        case "no manifest":
            (folder / "manifest.json").unlink()
        case "changed":
            (folder / "prompt.safetensors").write_bytes(b"prompx")
        case "added":
            (folder / "more").write_bytes(b"")
        case "no facts":
            (folder / "artifact.json").write_text("{}")
            write_manifest(folder)
        case _:
            folder = tmp_path / "nowhere"
    with pytest.raises(BadData, match="artifact"):
        keep(registry, folder)
    assert not registry.paths.store.exists()
    assert list_artifacts(registry) == []


def test_damage_in_the_store_is_found_and_mended(registry: Registry, tmp_path: Path) -> None:
    folder = artifact_folder(tmp_path / "artifact-1")
    keep(registry, folder)
    found = get_artifact(registry, "1")
    (found.path / "prompt.safetensors").write_bytes(b"prompx")
    assert artifacts.verify(found) == ["prompt.safetensors: differs from its hash"]
    write_manifest(found.path)
    assert artifacts.verify(found) == [f"{found.path}: the manifest itself was changed"]
    keep(registry, folder)
    assert artifacts.verify(found) == []


def test_what_is_not_there(registry: Registry, tmp_path: Path) -> None:
    for ref, error, message in (
        ("a7", NotFound, "ptq artifact list"),
        ("99", NotFound, "ptq artifact list"),
        ("2", NotFound, "job 2 left no artifact"),
        ("3", NotFinished, "job 3 is running"),
        ("abcdef12", NotFound, "no artifact"),
        ("what?", BadInput, "not an artifact"),
        ("abc", BadInput, "not an artifact"),
    ):
        with pytest.raises(error, match=message):
            get_artifact(registry, ref)


def test_what_is_about_to_be_named_is_not_cleared_away(home: Path, tmp_path: Path) -> None:
    """However long ago training wrote it: the disk may have been full for hours."""
    registry = Registry.open(load_settings(), create=True)
    registry.create()
    folder = artifact_folder(tmp_path / "made")
    os.utime(folder, (1.0, 1.0))
    staged = stage_artifact(registry.paths, folder)
    assert collect(registry, now=time.time()) == []
    assert registry.paths.artifact(staged.digest).is_dir()
