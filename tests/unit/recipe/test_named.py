"""Files that a recipe names are part of the job by their digests."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import BadRecipe
from orchestrator.recipe.named import changed_files, named_files, with_digests, with_files
from orchestrator.recipe.schema import JobRecipe


def recipe(**parts: Any) -> JobRecipe:
    raw = {
        "name": "r",
        "base": "b",
        "dataset": "d",
        "task": {"type": "cloze", "input": "{sub} [MASK]"},
        "method": {"type": "prompt-tuning", "length": 2},
        "train": {"steps": 1, "lr": 1},
    }
    return JobRecipe.model_validate(raw | parts)


def digest(text: bytes) -> str:
    return "sha256:" + hashlib.sha256(text).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "words.txt").write_bytes(b"river\n")
    (tmp_path / "start.npy").write_bytes(b"numbers")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "prompt.safetensors").write_bytes(name.encode())
    return tmp_path


def cloze(folder: Path, **more: Any) -> dict[str, Any]:
    return {"type": "cloze", "input": "{sub} [MASK]", "vocabulary": str(folder / "words.txt"), **more}


def started(**init: Any) -> dict[str, Any]:
    return {"type": "prompt-tuning", "length": 2, "init": init}


def test_each_file_gets_the_digest_of_its_bytes(folder: Path) -> None:
    made = with_digests(recipe(task=cloze(folder), method=started(type="file", path=str(folder / "start.npy"))))
    assert made.task.vocabulary_digest == digest(b"river\n")  # type: ignore[union-attr]
    assert made.method.init.digest == digest(b"numbers")  # type: ignore[union-attr]
    made = with_digests(recipe(method=started(type="prompt", path=[str(folder / name) for name in ("one", "two")])))
    assert made.method.init.digests == [digest(b"one"), digest(b"two")]  # type: ignore[union-attr]
    assert with_digests(made) == made
    plain = recipe()
    assert with_digests(plain) is plain
    assert named_files(plain) == []


def test_a_file_that_is_not_there_is_left_to_others(folder: Path) -> None:
    (folder / "words.txt").unlink()
    assert with_digests(recipe(task=cloze(folder))) == recipe(task=cloze(folder))


def test_a_recipe_that_names_a_digest_wants_that_file(folder: Path) -> None:
    wanted = recipe(task=cloze(folder, vocabulary_digest=digest(b"other")))
    with pytest.raises(BadRecipe, match="is another file than the recipe says"):
        with_digests(wanted)


def test_what_has_changed_is_told(folder: Path) -> None:
    made = with_digests(recipe(task=cloze(folder), method=started(type="prompt", path=str(folder / "one"))))
    raw = made.model_dump(mode="json")
    assert changed_files(raw) == []
    (folder / "words.txt").write_bytes(b"sea\n")
    (folder / "one" / "prompt.safetensors").unlink()
    words, prompt = folder / "words.txt", folder / "one" / "prompt.safetensors"
    assert changed_files(raw) == [f"{words} was changed", f"{prompt} is gone"]
    assert changed_files(recipe(task=cloze(folder)).model_dump(mode="json")) == []  # nobody knows how it was
    assert changed_files({"name": "of another time"}) == []


def test_files_may_lie_elsewhere(folder: Path) -> None:
    made = with_digests(recipe(task=cloze(folder), method=started(type="prompt", path=str(folder / "one"))))
    moved = with_files(made, lambda file: Path("/own") / file.path.parent.name / file.path.name)
    assert moved.task.vocabulary == f"/own/{folder.name}/words.txt"  # type: ignore[union-attr]
    assert moved.method.init.path == ["/own/one"]  # type: ignore[union-attr]
    assert moved.method.init.digests == made.method.init.digests  # type: ignore[union-attr]
