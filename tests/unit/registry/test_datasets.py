"""Versions: the same rows once, other rows anew, and damage noticed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.layout import bad_rows
from orchestrator.data.rows import ReadOptions
from orchestrator.data.staging import stage
from orchestrator.errors import BadInput, NotFound
from orchestrator.registry import datasets
from orchestrator.registry.datasets import DatasetVersion, add_version, get_version, list_versions
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import load_settings


@pytest.fixture
def registry(home: Path) -> Registry:
    return Registry.open(load_settings(), create=True)


def add(registry: Registry, folder: Path, name: str, text: str, now: float = 1.0, **options: Any) -> DatasetVersion:
    path = folder / "rows.txt"
    path.write_text(text)
    options = {"delimiter": "|", "columns": ("source", "target"), "format": "delimited", **options}
    with stage(registry.paths, {"train": [path]}, ReadOptions(**options)) as staged:
        return add_version(registry, name, staged, user="ann", now=now)


def test_a_version_is_found_again_as_it_was_added(registry: Registry, tmp_path: Path, home: Path) -> None:
    made = add(registry, tmp_path, "e2e", "a|b\nc|d\n", now=12.5)
    assert get_version(registry, "e2e") == get_version(registry, "e2e@1") == made
    assert (made.ref, made.fields, made.splits, made.bad_rows) == ("e2e@1", ("source", "target"), {"train": 2}, 0)
    assert (made.created_at, made.created_by) == (12.5, "ann")
    assert made.source["options"] == {"delimiter": "|", "columns": ["source", "target"], "format": "delimited"}
    assert {path.name for path in made.path.iterdir()} == {"train.arrow", "version.json", "manifest.json"}
    assert json.loads((made.path / "version.json").read_text())["digest"] == made.digest
    assert datasets.verify(made) == []
    assert [path.name for path in (home / "store").iterdir()] == ["datasets"]


def test_the_same_rows_are_the_same_version(registry: Registry, tmp_path: Path) -> None:
    first = add(registry, tmp_path, "x", "a|b\n", now=1)
    second = add(registry, tmp_path, "x", "a|c\n", now=2)
    again = add(registry, tmp_path, "x", "a|b\n", now=3)
    assert (first.version, second.version) == (1, 2)
    assert again == first
    assert get_version(registry, "x") == second
    other_name = add(registry, tmp_path, "y", "a|b\n", now=4)
    assert (other_name.ref, other_name.path, other_name.id != first.id) == ("y@1", first.path, True)
    assert [version.ref for version in list_versions(registry)] == ["x@1", "x@2", "y@1"]
    assert len(list(registry.paths.store.glob("datasets/*"))) == 2


def test_bad_rows_of_every_adding_are_kept(registry: Registry, tmp_path: Path) -> None:
    first = add(registry, tmp_path, "x", "a|b\nbad one\n", skip_bad=True)
    assert [row["raw"] for row in bad_rows(first.path)] == ["bad one"]
    second = add(registry, tmp_path, "y", "bad two\na|b\n", skip_bad=True)
    assert [row["raw"] for row in bad_rows(second.path)] == ["bad one", "bad two"]
    clean = add(registry, tmp_path, "z", "a|b\n")
    assert first.path == second.path == clean.path
    assert [row["raw"] for row in bad_rows(clean.path)] == ["bad one", "bad two"]
    assert [datasets.verify(version) for version in list_versions(registry)] == [[], [], []]
    assert [version.bad_rows for version in list_versions(registry)] == [1, 1, 0]


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a@1", ".a", "-a", "é", "a" * 101])
def test_names_that_cannot_be(registry: Registry, tmp_path: Path, home: Path, name: str) -> None:
    with pytest.raises(BadInput, match="cannot be a name"):
        add(registry, tmp_path, name, "a|b\n")
    assert list(home.iterdir()) == []


def test_what_is_not_there(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="ptq dataset list"):
        get_version(registry, "e2e")
    add(registry, tmp_path, "e2e", "a|b\n")
    with pytest.raises(NotFound, match="did you mean 'e2e'"):
        get_version(registry, "e2r")
    with pytest.raises(NotFound, match="no version 2; its newest is e2e@1"):
        get_version(registry, "e2e@2")
    for ref in ("e2e@x", "e2e@0", "e2e@", "@1", ""):
        with pytest.raises(BadInput, match="NAME@VERSION"):
            get_version(registry, ref)


@pytest.mark.parametrize("damage", ["changed", "missing file", "missing folder", "added", "consistent manifest"])
def test_damage_is_found_and_mended_by_adding_again(registry: Registry, tmp_path: Path, damage: str) -> None:
    version = add(registry, tmp_path, "x", "aaaa|bbbb\n")
    arrow = version.path / "train.arrow"
    match damage:
        case "changed":
            arrow.write_bytes(arrow.read_bytes().replace(b"aaaa", b"aaba"))
        case "missing file":
            arrow.unlink()
        case "missing folder":
            version.path.rename(version.path.with_name("away"))
        case "added":
            (version.path / "more.arrow").write_bytes(b"")
        case _:
            other = add(registry, tmp_path, "other", "aaaa|bbbc\n")
            for file in other.path.iterdir():
                (version.path / file.name).write_bytes(file.read_bytes())
    assert datasets.verify(version) != []
    if damage != "consistent manifest":
        assert add(registry, tmp_path, "x", "aaaa|bbbb\n") == version
        assert datasets.verify(version) == []


ADD = """
import sys
from pathlib import Path
from orchestrator.data.rows import ReadOptions
from orchestrator.data.staging import stage
from orchestrator.registry.datasets import add_version
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import load_settings
sys.stdin.readline()
registry = Registry.open(load_settings(), create=True)
with stage(registry.paths, {"train": [Path(sys.argv[1])]}, ReadOptions(format="text")) as staged:
    print(add_version(registry, "x", staged, user="u", now=0.0).ref)
"""


def test_processes_that_add_at_once(registry: Registry, tmp_path: Path, home: Path) -> None:
    same, other = tmp_path / "same.txt", tmp_path / "other.txt"
    same.write_text("a\n")
    other.write_text("b\n")
    running = [
        subprocess.Popen(
            [sys.executable, "-c", ADD, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for path in (same, same, other)
    ]
    for process in running:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [(process.communicate(timeout=60), process.returncode) for process in running]
    assert [(error, code) for (_, error), code in results] == [("", 0)] * 3
    refs = [out.strip() for (out, _), _ in results]
    assert refs[0] == refs[1] != refs[2]
    assert sorted(set(refs)) == ["x@1", "x@2"]
    assert [datasets.verify(version) for version in list_versions(registry)] == [[], []]
    assert sorted(path.name for path in (home / "store").iterdir()) == ["datasets"]
