"""`ptq dataset` beyond adding: statistics and tokens, derived versions, differences, notes, `datasets` in and out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from box import Box


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Box:
    return Box.made(tmp_path_factory.mktemp("more") / "home")


def test_show_tells_what_is_in_it(box: Box) -> None:
    shown = box.ok("dataset", "show", "tiny", "--rows", "0", "--tokens", "tiny")
    assert "leak      8 rows of validation stand in train too" in shown
    assert "values    label in train: cold 80%, warm 20%" in shown
    tokens = box.json("dataset", "show", "tiny", "--json")["statistics"]["tokens"]["tiny"]
    assert tokens["text"]["total"] >= tokens["text"]["most"] >= tokens["text"]["median"] > 0
    assert f"tokens    text with tiny: {tokens['text']['total']:,}" in shown


def test_derive_diff_and_note(box: Box) -> None:
    made = box.ok(
        "dataset", "derive", "warm", "tiny", "--where", "label=warm", "--licence", "CC0-1.0", "--tag", "small"
    )
    assert made.startswith("warm@1: 10 rows of tiny@1's 48, where label=warm\n")
    found = box.run("dataset", "diff", "tiny", "warm")
    assert (found.returncode, found.stdout.splitlines()[1].split()) == (1, ["train", "8", "32", "0"])
    assert box.run("dataset", "diff", "tiny", "tiny@1").stdout == "tiny@1 and tiny@1: the same rows\n"
    assert (
        box.ok("dataset", "note", "warm", "--tag", "mine", "--untag", "small") == "warm@1: licence CC0-1.0, tags mine\n"
    )
    assert [one["ref"] for one in box.json("dataset", "list", "--tag", "mine", "--json")] == ["warm@1"]
    assert "source    tiny@1, where label=warm" in box.ok("dataset", "show", "warm")
    both = box.run("dataset", "derive", "x", "tiny", "--where", "label=warm", "--sample", "3")
    assert (both.returncode, "together" in both.stderr) == (2, True)


def test_to_datasets_and_back(box: Box, tmp_path: Path) -> None:
    box.ok("dataset", "export", "tiny", "--format", "datasets", "-o", str(tmp_path / "out"))
    added = box.json("dataset", "add", "back", str(tmp_path / "out"), "--json")
    assert added["digest"] == box.json("dataset", "show", "tiny", "--json")["digest"]
    box.ok("dataset", "export", "tiny", "--format", "jsonl", "-o", str(tmp_path / "lines"))
    assert len((tmp_path / "lines" / "train.jsonl").read_text().splitlines()) == 40
    assert json.loads((tmp_path / "lines" / "validation.jsonl").read_text().splitlines()[0])["label"] == "warm"
