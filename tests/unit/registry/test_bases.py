"""From what a recipe calls its base to a folder with a fingerprint."""

from __future__ import annotations

import os
import shutil
import struct
from dataclasses import asdict
from pathlib import Path

import pytest
import sqlalchemy as sa
from queue_helpers import base_folder

from orchestrator.companions import companions
from orchestrator.errors import BadInput, NotFound
from orchestrator.jobspec import BaseSpec
from orchestrator.registry import bases
from orchestrator.registry.bases import add_base, faults, get_base, list_bases, resolve_base
from orchestrator.registry.storage import tables
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import load_settings
from orchestrator.weights import fingerprint


@pytest.fixture
def registry(home: Path) -> Registry:
    return Registry.open(load_settings(), create=True)


def test_a_registered_base_is_resolved_by_its_name(registry: Registry, tmp_path: Path) -> None:
    folder = base_folder(tmp_path / "model")
    made = add_base(registry, "tiny", str(folder), user="ann", now=5.0)
    assert get_base(registry, "tiny") == made
    assert [base.name for base in list_bases(registry)] == ["tiny"]
    resolved = resolve_base(registry, "tiny", None, offline=True)
    assert resolved.spec.id == "tiny"
    assert resolved.spec.path == str(folder)
    assert resolved.spec.revision == resolved.spec.fingerprint == fingerprint(folder)
    assert resolved.spec.kind == resolved.facts.kind == "causal"
    assert (resolved.facts.hidden, resolved.facts.vocab, resolved.facts.parameters) == (4, 7, 28)
    assert resolve_base(registry, "tiny", "main", offline=True) == resolved
    with pytest.raises(BadInput, match="registered at revision"):
        resolve_base(registry, "tiny", "v2", offline=True)


def test_a_name_wins_over_a_folder_of_that_name(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_base(registry, "tiny", str(base_folder(tmp_path / "registered", 1)), user="ann", now=0)
    base_folder(tmp_path / "tiny", 2)
    base_folder(tmp_path / "loose", 3)
    monkeypatch.chdir(tmp_path)
    assert resolve_base(registry, "tiny", None, offline=True).spec.path == str(tmp_path / "registered")
    loose = resolve_base(registry, "loose", None, offline=True)
    assert loose.spec.path == str(tmp_path / "loose")
    assert loose.spec.revision == loose.spec.fingerprint == fingerprint(tmp_path / "loose")


def test_adding_again_changes_nothing_and_a_name_is_not_moved(registry: Registry, tmp_path: Path) -> None:
    folder = base_folder(tmp_path / "model")
    made = add_base(registry, "tiny", str(folder), user="ann", now=1)
    assert add_base(registry, "tiny", str(folder), user="bob", now=2) == made
    with pytest.raises(BadInput, match="another base 'tiny'"):
        add_base(registry, "tiny", str(base_folder(tmp_path / "other", 2)), user="ann", now=3)
    assert list_bases(registry) == [made]


def test_changed_weights_are_noticed(registry: Registry, tmp_path: Path) -> None:
    folder = base_folder(tmp_path / "model")
    add_base(registry, "tiny", str(folder), user="ann", now=1)
    weights = folder / "model.safetensors"
    os.utime(weights, (1, 1))  # touched, not changed
    resolve_base(registry, "tiny", None, offline=True)
    base_folder(folder, 2.0)
    with pytest.raises(BadInput, match="changed after it was registered"):
        resolve_base(registry, "tiny", None, offline=True)
    weights.unlink()
    with pytest.raises(BadInput, match=r"no model\.safetensors"):
        resolve_base(registry, "tiny", None, offline=True)
    folder.rename(tmp_path / "away")
    with pytest.raises(NotFound, match="is gone"):
        resolve_base(registry, "tiny", None, offline=True)


def test_a_changed_tokenizer_is_noticed_by_name(registry: Registry, tmp_path: Path) -> None:
    """The weights are the same: what they read is not."""
    folder = base_folder(tmp_path / "model")
    made = add_base(registry, "tiny", str(folder), user="ann", now=1)
    spec = resolve_base(registry, "tiny", None, offline=True).spec
    assert spec.companions == made.companions == get_base(registry, "tiny").companions
    assert set(spec.companions) == {"config.json", "tokenizer.json"}
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (folder / "tokenizer.json").write_text('{"other": 1}')
    assert faults(made) == ["tokenizer.json was changed"]
    for act in (
        lambda: resolve_base(registry, "tiny", None, offline=True),
        lambda: add_base(registry, "tiny", str(folder), user="ann", now=2),
        lambda: bases.base_folder(registry, asdict(spec)),
    ):
        with pytest.raises(BadInput, match=r"(?s)tokenizer.json was changed since.*ptq base add NAME PATH"):
            act()
    add_base(registry, "whole", str(copy), user="ann", now=3)
    assert bases.base_folder(registry, asdict(spec)) == copy
    (folder / "model.safetensors").unlink()
    assert faults(made)[0].startswith("no model.safetensors")


def test_a_base_of_an_older_registry_goes_on(registry: Registry, tmp_path: Path) -> None:
    """Nobody wrote down what its tokenizer was; adding it again does."""
    folder = base_folder(tmp_path / "model")
    made = add_base(registry, "tiny", str(folder), user="ann", now=1)
    with registry.write() as connection:
        facts = connection.execute(sa.select(tables.bases.c.facts)).scalar_one()
        old = {key: value for key, value in facts.items() if key != "companions"}
        connection.execute(sa.update(tables.bases).values(facts=old))
    known = get_base(registry, "tiny")
    assert (known.companions, faults(known)) == ({}, [])
    (folder / "tokenizer.json").write_text('{"other": 1}')
    now = companions(folder)
    assert resolve_base(registry, "tiny", None, offline=True).spec.companions == now != made.companions
    older = {"id": "tiny", "path": str(folder), "revision": "r", "fingerprint": made.fingerprint, "kind": "causal"}
    assert bases.base_folder(registry, older) == folder
    assert BaseSpec(**older).companions == {}
    assert add_base(registry, "tiny", str(folder), user="ann", now=2).companions == now
    assert get_base(registry, "tiny").companions == now


def test_a_registered_base_is_not_hashed_again(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_base(registry, "tiny", str(base_folder(tmp_path / "model")), user="ann", now=1)

    def hashed(_folder: Path) -> str:
        pytest.fail("read all weights")

    monkeypatch.setattr("orchestrator.registry.bases.fingerprint", hashed)
    resolve_base(registry, "tiny", None, offline=True)
    base_folder(tmp_path / "model", 2.0)
    with pytest.raises(pytest.fail.Exception, match="read all weights"):  # here it would have been
        resolve_base(registry, "tiny", None, offline=True)


@pytest.mark.parametrize("make", ["pickle", "empty", "file", "truncated", "impossible", "untokenized"])
def test_folders_that_are_no_bases(registry: Registry, tmp_path: Path, home: Path, make: str) -> None:
    folder = base_folder(tmp_path / "model")
    weights = folder / "model.safetensors"
    match make:
        case "pickle":
            weights.rename(folder / "pytorch_model.bin")
        case "empty":
            folder = tmp_path / "empty"
            folder.mkdir()
        case "file":
            folder = weights
        case "untokenized":
            (folder / "tokenizer.json").unlink()
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "impossible":
            weights.write_bytes(struct.pack("<Q", 1 << 60))
    for act in (
        lambda: add_base(registry, "tiny", str(folder), user="ann", now=1),
        lambda: resolve_base(registry, str(folder), None, offline=True),
    ):
        with pytest.raises(BadInput) as caught:
            act()
        assert caught.value.exit_code == 2
        assert ("pickle" in str(caught.value)) == (make == "pickle")
    assert list(home.iterdir()) == []


def test_offline_hub_ids_say_what_to_do(
    registry: Registry, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for model in ("gpt2-medium", "org/name"):
        with pytest.raises(NotFound, match=r"(?s)HF_HUB_OFFLINE is set.*ptq base add NAME PATH"):
            resolve_base(registry, model, "main", offline=True)
    for model in ("./nothing", "/no/such/folder", "a/b/c", "no such", "../x"):
        with pytest.raises(NotFound, match=r"(?s)no base and no folder.*ptq base add NAME PATH"):
            resolve_base(registry, model, None, offline=True)
    add_base(registry, "gpt2-small", str(base_folder(tmp_path / "model")), user="ann", now=1)
    with pytest.raises(NotFound, match="did you mean 'gpt2-small'"):
        resolve_base(registry, "gpt2-smal", None, offline=True)
    with pytest.raises(NotFound, match="did you mean 'gpt2-small'"):
        get_base(registry, "gpt2-smal")


def test_a_hub_model_in_the_cache_is_resolved_to_its_commit(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert registry.settings.offline
    # The layout of the hub's cache: refs/<branch> holds the commit, snapshots/<commit> the files.
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    commit = "ab" * 20
    cached = tmp_path / "cache" / "models--org--tiny"
    folder = base_folder(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    spec = resolve_base(registry, "org/tiny", None, offline=True).spec
    assert (spec.id, spec.revision, Path(spec.path)) == ("org/tiny", commit, folder)
    made = add_base(registry, "t", "org/tiny", user="u", now=1)
    assert (made.source, made.revision) == ("org/tiny", commit)
    assert resolve_base(registry, "t", commit[:8], offline=True).spec.revision == commit


@pytest.mark.parametrize("name", ["a/b", "", "a b"])
def test_names_that_cannot_be(registry: Registry, tmp_path: Path, home: Path, name: str) -> None:
    with pytest.raises(BadInput, match="cannot be a name"):
        add_base(registry, name, str(base_folder(tmp_path / "model")), user="ann", now=1)
    assert list(home.iterdir()) == []
