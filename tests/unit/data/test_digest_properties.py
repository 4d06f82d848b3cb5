"""The digest belongs to the rows: the same from every format, another one for any other character."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.rows import ReadOptions
from orchestrator.data.staging import stage
from orchestrator.paths import HomePaths

FIELDS = ("source", "target")
Rows = list[tuple[str, str]]

# What TSV can hold: no tab, no line end. A lone CR is left out because CSV readers take it as a line end.
values = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n\t"), min_size=1).filter(
    lambda text: text.strip()
)
tables = st.lists(st.tuples(values, values), min_size=1, max_size=6)


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([FIELDS, *rows])


def write_tsv(path: Path, rows: Rows) -> None:
    path.write_bytes("".join(f"{a}\t{b}\r\n" for a, b in [FIELDS, *rows]).encode())


def write_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(dict(zip(FIELDS, row, strict=True))) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, rows: Rows) -> None:
    text = json.dumps([dict(zip(FIELDS, row, strict=True)) for row in rows], ensure_ascii=False, indent=2)
    path.write_text(text, encoding="utf-8")


def write_parquet(path: Path, rows: Rows) -> None:
    pq.write_table(pa.table({name: [row[index] for row in rows] for index, name in enumerate(FIELDS)}), path)


WRITERS = {
    "a.csv": write_csv,
    "a.tsv": write_tsv,
    "a.jsonl": write_jsonl,
    "a.json": write_json,
    "a.parquet": write_parquet,
}


def digest(rows: Rows, name: str = "a.jsonl", split: str = "train") -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        WRITERS[name](path, rows)
        with stage(HomePaths(Path(folder) / "home"), {split: [path]}, ReadOptions()) as staged:
            assert staged.fields == FIELDS
            return staged.digest


@settings(max_examples=12, deadline=None)
@given(rows=tables)
def test_one_digest_from_every_format(rows: Rows) -> None:
    assert {digest(rows, name) for name in WRITERS} == {digest(rows)}


@settings(max_examples=25, deadline=None)
@given(data=st.data(), rows=tables)
def test_any_character_changes_the_digest(data: st.DataObject, rows: Rows) -> None:
    row = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.integers(0, 1))
    text = rows[row][column]
    position = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(codec="utf-8", exclude_characters="\0\r\n\t" + text[position]))
    changed: Sequence[str] = [*rows[row]]
    changed = [*changed[:column], text[:position] + other + text[position + 1 :], *changed[column + 1 :]]
    if all(value.strip() for value in changed):
        assert digest([*rows[:row], (changed[0], changed[1]), *rows[row + 1 :]]) != digest(rows)


@settings(max_examples=6, deadline=None)
@given(rows=st.lists(st.tuples(values, values), min_size=2, max_size=6, unique=True))
def test_order_repetition_and_split_belong_to_the_digest(rows: Rows) -> None:
    different = {
        digest(rows),
        digest(rows[::-1]),
        digest([*rows, rows[0]]),
        digest(rows[1:]),
        digest(rows, split="test"),
    }
    assert len(different) == 5


def test_texts_cannot_move_between_columns_or_rows() -> None:
    tricky = [
        [("a", "b"), ("c", "d")],
        [("a", "b,c"), ("d", "e")],
        [('a","b', "c"), ("d", "e")],
        [("a", 'b"]'), ('["c', "d")],
        [("a", 'b"]\\n["c'), ("d", "e")],
    ]
    assert len({digest(rows) for rows in tricky}) == len(tricky)


def test_numbers_and_words_are_the_same_from_typed_and_untyped_files(tmp_path: Path) -> None:
    typed = [{"t": "x", "n": 3, "f": 0.5, "b": True}, {"t": "y", "n": -1, "f": 2.0, "b": False}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in typed))
    (tmp_path / "a.csv").write_text("t,n,f,b\nx,3,0.5,true\ny,-1,2.0,false\n")
    pq.write_table(pa.Table.from_pylist(typed), tmp_path / "a.parquet")
    found = set()
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        with stage(HomePaths(tmp_path / "home"), {"train": [tmp_path / name]}, ReadOptions()) as staged:
            found.add(staged.digest)
    assert len(found) == 1
