"""A folder is what its manifest says, byte for byte, and nothing more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.manifest import NAME, digest_of, manifest_faults, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    (made / "sub").mkdir(parents=True)
    (made / "a").write_bytes(b"alpha")
    (made / "sub" / "b").write_bytes(b"")
    (made / "sub" / NAME).write_text("{}")  # a file like any other
    write_manifest(made)
    return made


def test_a_whole_folder_has_no_faults_and_one_digest(folder: Path) -> None:
    assert manifest_faults(folder) == []
    assert write_manifest(folder) == digest_of(folder)
    assert digest_of(folder).startswith("sha256:")


@pytest.mark.parametrize("name", ["a", "sub/b", f"sub/{NAME}"])
def test_every_change_is_found(name: str, folder: Path) -> None:
    before = (folder / name).read_bytes()
    for content in (before + b"x", before[:-1] + b"?"):
        (folder / name).write_bytes(content)
        assert manifest_faults(folder) == [f"{name}: differs from its hash"]
    (folder / name).unlink()
    assert manifest_faults(folder) == [f"{name}: missing"]


@pytest.mark.parametrize("name", ["new", "sub/new", ".hidden"])
def test_an_added_file_is_found(name: str, folder: Path) -> None:
    (folder / name).write_text("x")
    assert manifest_faults(folder) == [f"{name}: not in the manifest"]


def test_symbolic_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"alpha")
    (folder / "a").unlink()
    (folder / "a").symlink_to(tmp_path / "secret")
    assert manifest_faults(folder) == ["a: leads out of the folder"]
    (folder / "a").unlink()
    (folder / "a").write_bytes(b"alpha")
    for target in (tmp_path / "secret", tmp_path / "nothing", tmp_path):
        (folder / "link").symlink_to(target)
        assert manifest_faults(folder) == ["link: not in the manifest"]
        (folder / "link").unlink()


def test_a_linked_folder_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "sub").rename(tmp_path / "moved")
    (folder / "sub").symlink_to(tmp_path / "moved")
    assert f"sub/{NAME}: leads out of the folder" in manifest_faults(folder)


@pytest.mark.parametrize("name", ["../secret", "sub/../../secret", "/etc/hostname"])
def test_a_name_that_leads_out_is_a_fault(name: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"alpha")
    manifest = json.loads((folder / NAME).read_text())
    manifest["files"][name] = manifest["files"]["a"]
    (folder / NAME).write_text(json.dumps(manifest))
    assert manifest_faults(folder) == [f"{name}: leads out of the folder"]


@pytest.mark.parametrize(
    "manifest", [None, 3, [], {}, {"files": 3}, {"files": {"a": 5}}, {"files": {"a": {}}}, {"files": {"a": None}}]
)
def test_a_manifest_of_another_shape_is_a_fault(manifest: Any, folder: Path) -> None:
    (folder / NAME).write_text(json.dumps(manifest))
    assert "not readable" in manifest_faults(folder)[0]
    (folder / NAME).write_bytes(b"\xff")
    assert "not readable" in manifest_faults(folder)[0]


def test_no_manifest_is_a_fault(tmp_path: Path) -> None:
    assert "missing" in manifest_faults(tmp_path)[0]
    assert "missing" in manifest_faults(tmp_path / "nothing")[0]
