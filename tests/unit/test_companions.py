"""What decides how a base reads and writes is known by its files, each by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.companions import changes, companions, refuse_changes
from orchestrator.errors import BadInput

CONFIG = {"model_type": "gpt2", "transformers_version": "4.1", "_name_or_path": "/a", "vocab_size": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {"config.json": json.dumps(CONFIG), "tokenizer.json": "{}", "merges.txt": "a b", "README.md": "hello"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "model.safetensors").write_bytes(b"12345678")
    (tmp_path / "trainer_state.json").write_text("{}")
    return tmp_path


def test_what_transformers_reads_and_nothing_else(folder: Path) -> None:
    assert list(companions(folder)) == ["config.json", "merges.txt", "tokenizer.json"]
    (folder / "tokenizer.model").write_bytes(b"")
    (folder / "vocab.txt").mkdir()  # a folder of that name is no file of it
    assert set(companions(folder)) == {"config.json", "merges.txt", "tokenizer.json", "tokenizer.model"}


def test_what_anybody_keeps_beside_a_base_is_not_its_own(folder: Path) -> None:
    then = companions(folder)
    beside = ("train.py", "word2vec.model", "dictionary.csv", "vocabulary_of_mine.txt", "bpe_notes.md")
    for name in beside:
        (folder / name).write_text("mine")
    assert companions(folder) == then
    assert changes(then, folder) == []
    assert changes({**then, "train.py": "sha256:once"}, folder) == []  # as an older ptq wrote down
    settings = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert set(companions(folder)) == {*then, "tokenizer_config.json", "train.py", "word2vec.model"}
    written = companions(folder)
    (folder / "train.py").unlink()
    assert changes(written, folder) == ["train.py is gone"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({**CONFIG, "transformers_version": "5.0", "_name_or_path": "/b"}, []),
        (dict(reversed(CONFIG.items())), []),
        ({**CONFIG, "vocab_size": 4}, ["config.json was changed"]),
        ("{", ["config.json was changed"]),
        ([], ["config.json was changed"]),
        (None, ["config.json is gone"]),
    ],
)
def test_settings_are_compared_by_what_they_say(changed: Any, told: list[str], folder: Path) -> None:
    then = companions(folder)
    if changed is None:
        (folder / "config.json").unlink()
    else:
        (folder / "config.json").write_text(changed if isinstance(changed, str) else json.dumps(changed, indent=2))
    assert changes(then, folder) == told


def test_changes_are_told_by_name_with_what_to_type(folder: Path) -> None:
    then = companions(folder)
    assert changes(then, folder) == changes({}, folder) == []
    refuse_changes(then, folder, "then")
    (folder / "README.md").write_text("other")
    assert changes(then, folder) == []
    (folder / "merges.txt").unlink()
    (folder / "tokenizer.json").write_text("{ }")
    (folder / "vocab.json").write_text("{}")
    assert changes(then, folder) == ["merges.txt is gone", "tokenizer.json was changed", "vocab.json is new"]
    with pytest.raises(BadInput, match=r"(?s)vocab.json is new since the job was submitted.*ptq base add NAME PATH"):
        refuse_changes(then, folder, "the job was submitted")
