"""SuperGLUE's own files as rows, one question each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_readers import faults, rows

ENDS = {"premise": "The sun rose.", "choice1": "It was morning.", "choice2": "I slept!", "label": 1, "idx": 4}

WSC = {"span1_text": "a", "span2_text": "b", "span2_index": 1}


def written(path: Path, values: list[Any]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def test_copa_gets_the_beginning_and_the_ends_of_a_sentence(tmp_path: Path) -> None:
    file = written(tmp_path / "copa", [ENDS | {"question": "cause"}, ENDS | {"question": "effect"}])
    found = rows(file, format="superglue-copa")
    assert [row["begun"] for _, row in found] == ["The sun rose because", "The sun rose, so"]
    assert (found[0][1]["end1"], found[0][1]["end2"], found[0][1]["label"]) == ("it was morning", "i slept", 1)
    assert [line for line, _ in found] == [1, 2]


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("copa", {"premise": "a"}, "not a row of SuperGLUE's COPA (the key 'question' is missing)"),
        ("copa", ENDS | {"question": "why"}, "not a row of SuperGLUE's COPA (the key 'why' is missing)"),
        ("multirc", {"passage": "text", "idx": 1}, "not a row of SuperGLUE's MultiRC ("),
        ("record", {"passage": {"text": "a b", "entities": []}, "qas": [{"query": "a"}]}, "a query has no @place"),
        ("wsc", {"text": "a b", "target": {"span1_text": "a", "span2_text": "it", "span2_index": 1}}, "word 1 of"),
        ("wsc", {"text": "a b"}, "the key 'target' is missing"),
        ("wsc", {"text": "a b", "target": "it"}, "not a row of SuperGLUE's WSC ("),
        ("wsc", {"text": "a b", "target": WSC | {"span1_text": 5}}, "not a row of SuperGLUE's WSC ("),
        ("wsc", {"text": "a b", "target": WSC | {"span2_index": [1]}}, "not a row of SuperGLUE's WSC ("),
        ("wsc", {"text": ["a"], "target": WSC}, "not a row of SuperGLUE's WSC ("),
    ],
)  # fmt: skip
def test_other_rows_are_told_by_their_line(kind: str, value: dict[str, Any], said: str, tmp_path: Path) -> None:
    ((line, reason),) = faults(written(tmp_path / kind, [value]), format=f"superglue-{kind}")
    assert line == 1
    assert said in reason


def test_the_real_files_are_read_whole(shared_data: Path) -> None:
    folder = shared_data / "fewglue"
    multirc = [row for _, row in rows(folder / "MultiRC" / "val.jsonl", format="superglue-multirc")]
    assert (len(multirc), len({row["group"] for row in multirc})) == (4848, 953)
    record = [row for _, row in rows(folder / "ReCoRD" / "train.jsonl", format="superglue-record")]
    for row in record:
        assert set(row["answers"]) <= set(row["candidates"])
        assert row["query"] == f"{row['before']}@placeholder{row['after']}"
        assert all(candidate in row["passage"] for candidate in row["candidates"] if "\n" not in candidate)
    wsc = [row for _, row in rows(folder / "WSC" / "val.jsonl", format="superglue-wsc")]
    assert (len(record), len(wsc)) == (32, 104)
    assert all(row["span"] in row["candidates"] and f"*{row['pronoun']}*" in row["marked"] for row in wsc)
    assert {len(row["candidates"]) for row in wsc} == {1, 2, 3, 4}
    copa = [row for _, row in rows(folder / "COPA" / "unlabeled.jsonl", format="superglue-copa")]
    assert len(copa) == 400
