"""Rows that are read many at a time are those that are read one by one, faults and all."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.data import lines
from orchestrator.data.checks import Checker
from orchestrator.data.columns import batch_of
from orchestrator.data.layout import BAD_ROWS
from orchestrator.data.rows import ReadOptions
from orchestrator.data.staging import stage
from orchestrator.data.store import encoded_rows
from orchestrator.errors import BadData, BadInput
from orchestrator.paths import HomePaths

GOOD = {"text": "row", "label": "1"}
JSON = [
    *(json.dumps(row).encode() for row in (GOOD, {"label": "b", "text": "c"}, {"text": "名 : «é»", "label": 7})),
    b'{"text":"a","label":"b"}',
    b'{"text":"say \\":","label":"x"}',
    b'{"text" : "a", "label":\t"b"}',
    b'{"text":"a","label":"b"},{"text":"c","label":"d"}',
    b'{"text":"a","label":"b"}{"text":"c","label":"d"}',
    b'{"text":"a","text":"c","label":"d"}',
    b'{"text" :"\\":","text":"b","label" :"c"}',
    b'{"text":"a","label":"b","more":"c"}',
    b'{"text":"a"}',
    b'{"text":{},"label":[{}',
    b'{"text":{"b":1},"label":[{}]}',
    b"{}]}",
    b'{"text":"a',
    b'b","label":"c"}',
    b'{"text":null,"label":"b"}',
    b'{"text":"  ","label":"b"}',
    b'{"text":"\\u00a0\\u2003","label":"b"}',
    b'{"text":"","label":"b"}',
    b'{"text":1.50,"label":true}',
    b'{"text":NaN,"label":"b"}',
    b'{"text":"\\ud83d","label":"b"}',
    b'{"text":"\\u0000","label":"b"}',
    b'{"text":"\\ud83d\\ude00","label":"\\n\\t\\\\"}',
    b'{"text":"\xff","label":"b"}',
    b'{"text":"a\rb","label":"c"}',
    b"null",
    b"[]",
    b"",
    b"  ",
    b'{"text":"a","label":"b"} ',
    b'{"text":"a","label":"b"}\r',
    b'{"text":12345678901234567890123,"label":-0}',
]
CSV = [
    b"a,b",
    b"c,d\r",
    "名,é".encode(),
    b'"a,b",c',
    b'"a',
    b'b",c',
    b'"a ""q"" b",c',
    b'5" pipe,x',
    b'"a"b,c',
    b"a",
    b"a,b,c",
    b"",
    b"  ",
    b",b",
    b"a\rb,c",
    b"a\0,b",
    b"\xff,b",
    b" , ",
    b'"a\r',
    b'",b',
]
TSV = [
    b"a\tb",
    b"c\td\r",
    b'"a\tb"',
    b'"\t"',
    b"a",
    b"a\tb\tc",
    b"",
    b"  ",
    b"\tb",
    b"a\rb\tc",
    b"\xff\tb",
    "名\té".encode(),
]


def staged(folder: Path, name: str, data: bytes, options: ReadOptions) -> Any:
    path = folder / name
    path.write_bytes(data)
    try:
        with stage(HomePaths(folder / "home"), {"train": [path]}, options) as made:
            aside = made.folder / BAD_ROWS
            statistics = {**(made.statistics or {})}
            return made.digest, made.splits, made.fields, statistics, aside.read_text() if aside.exists() else ""
    except (BadData, BadInput) as error:
        return str(error)


def both(folder: Path, name: str, data: bytes, **options: Any) -> tuple[Any, Any]:
    """(as it is read, as it is read row by row)."""
    asked = ReadOptions(**options)
    found = staged(folder, name, data, asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checker, "batch", lambda self, columns: None)
        patch.setattr(lines, "BLOCK", 1 << 30)
        return found, staged(folder, name, data, asked)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two or three lines."""
    monkeypatch.setattr(lines, "BLOCK", 60)


fixed = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
options = st.sampled_from([{}, {"skip_bad": True}, {"skip_bad": True, "keep": ("text",)}, {"required": ("label",)}])


@fixed
@given(
    chosen=st.lists(st.sampled_from(JSON), min_size=1, max_size=8), at=st.integers(0, 8), end=st.booleans(), how=options
)
def test_json_lines(tmp_path: Path, chosen: list[bytes], at: int, end: bool, how: dict[str, Any]) -> None:
    good = [json.dumps(GOOD).encode()] * 3
    data = b"\n".join([*good, *chosen[:at], *good, *chosen[at:]]) + b"\n" * end
    found, expected = both(tmp_path, "a.jsonl", data, **how)
    assert found == expected


@fixed
@given(chosen=st.lists(st.sampled_from(CSV), min_size=1, max_size=8), end=st.booleans(), how=options)
def test_csv(tmp_path: Path, chosen: list[bytes], end: bool, how: dict[str, Any]) -> None:
    data = b"\n".join([b"text,label", *[b"good,row"] * 6, *chosen]) + b"\n" * end
    found, expected = both(tmp_path, "a.csv", data, **how)
    assert found == expected


@fixed
@given(chosen=st.lists(st.sampled_from(TSV), min_size=1, max_size=8), end=st.booleans(), how=options)
def test_tsv(tmp_path: Path, chosen: list[bytes], end: bool, how: dict[str, Any]) -> None:
    data = b"\n".join([b"text\tlabel", *[b"good\trow"] * 8, *chosen]) + b"\n" * end
    found, expected = both(tmp_path, "a.tsv", data, split_first=not end, **how)
    assert found == expected


@pytest.mark.parametrize("bad", JSON)
def test_each_oddity_among_good_lines(tmp_path: Path, bad: bytes) -> None:
    good = [json.dumps(GOOD).encode()] * 5
    data = b"\n".join([*good, bad, *good])
    found, expected = both(tmp_path, "a.jsonl", data, skip_bad=True)
    assert found == expected


def test_quoted_csv_that_python_wrote(tmp_path: Path) -> None:
    text = io.StringIO()
    rows = [("a, b", 'say "x"'), ("two\nlines", "y"), ("two\r\nlines", "名")] * 9
    csv.writer(text).writerows([("text", "label"), *rows])
    found, expected = both(tmp_path, "a.csv", text.getvalue().encode())
    assert found == expected
    assert found[1] == {"train": 27}


@fixed
@given(rows=st.lists(st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\0"))] * 2), max_size=9))
def test_rows_are_encoded_as_json_encodes_them(rows: list[tuple[str, str]]) -> None:
    columns = [pa.array([row[place] for row in rows], pa.string()) for place in (0, 1)]
    batch = batch_of(["a", "b"], columns)
    expected = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows]
    assert encoded_rows(batch).to_pylist() == expected
    assert encoded_rows(batch.slice(len(rows) // 2)).to_pylist() == expected[len(rows) // 2 :]
