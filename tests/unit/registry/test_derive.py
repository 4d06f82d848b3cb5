"""Statistics of a version, derived versions, differences; the same rows counted and chosen in plain Python."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from registry_helpers import registry_at

from orchestrator.data import statistics
from orchestrator.data.columns import batch_of
from orchestrator.data.derive import filter_of
from orchestrator.data.export import export_rows
from orchestrator.data.rows import ReadOptions
from orchestrator.data.staging import stage
from orchestrator.data.statistics import Statistics
from orchestrator.data.store import encoded_rows, read_rows
from orchestrator.errors import BadData, BadInput
from orchestrator.registry.datasets import (
    DatasetVersion,
    Notes,
    add_version,
    annotate,
    get_version,
    list_versions,
    verify,
)
from orchestrator.registry.derive import derive, difference
from orchestrator.registry.lineage import lineage
from orchestrator.registry.storage.engine import Registry

ROWS = {
    "train": [{"text": f"film {i % 9}", "label": "pos" if i % 3 else "neg", "score": str(i)} for i in range(20)],
    "test": [{"text": f"film {i % 9}", "label": "neg", "score": str(i)} for i in range(0, 30, 3)],
}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return registry_at(tmp_path / "home")


def add(registry: Registry, folder: Path, name: str, splits: dict[str, list[dict[str, str]]]) -> DatasetVersion:
    files = {}
    for split, rows in splits.items():
        path = folder / f"{name}-{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[split] = [path]
    with stage(registry.paths, files, ReadOptions()) as staged:
        return add_version(registry, name, staged, user="ada", now=1.0)


def rows_of(version: DatasetVersion, split: str) -> list[dict[str, str]]:
    return [dict(zip(version.fields, values, strict=True)) for values in read_rows(version.path, split)]


def test_statistics_are_those_of_the_rows(registry: Registry, tmp_path: Path) -> None:
    version = add(registry, tmp_path, "films", {**ROWS, "train": [*ROWS["train"], *ROWS["train"][:2]]})
    found = version.statistics
    assert found is not None
    whole = [*ROWS["train"], *ROWS["train"][:2], *ROWS["test"]]
    assert found["duplicates"] == {"train": 2}
    leaks = sum(row in ROWS["train"] for row in ROWS["test"])
    assert found["shared"] == [{"split": "test", "with": "train", "rows": leaks}]
    assert leaks > 0
    assert found["values"]["label"]["train"] == dict(Counter(r["label"] for r in [*ROWS["train"], *ROWS["train"][:2]]))
    assert found["characters"]["text"] == {
        "mean": round(sum(len(row["text"]) for row in whole) / len(whole), 1),
        "most": max(len(row["text"]) for row in whole),
    }


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12)), max_size=60),
    memory=st.sampled_from([1, 5, 1000]),
)
def test_repetitions_are_counted_right_in_any_memory(rows: list[tuple[str, int]], memory: int) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    first: dict[int, str] = {}
    duplicates: Counter[str] = Counter()
    shared: Counter[tuple[str, str]] = Counter()
    for split, value in rows:
        earlier = first.setdefault(value, "")
        if not earlier:
            first[value] = split
        elif earlier == split:
            duplicates[split] += 1
        else:
            shared[split, earlier] += 1
    kept, statistics._IN_MEMORY = statistics._IN_MEMORY, memory
    try:
        counted = Statistics(Path())
        for split, value in rows:
            counted.add_batch(split, batch := batch_of(["n"], [pa.array([str(value)])]), encoded_rows(batch))
        result = counted.result(["n"] if rows else [])
        counted.close()
    finally:
        statistics._IN_MEMORY = kept
    assert result["duplicates"] == dict(duplicates)
    assert {(one["split"], one["with"]): one["rows"] for one in result["shared"]} == dict(shared)


FILTERS: dict[str, Any] = {
    "label=pos": lambda r: r["label"] == "pos",
    "label!=pos and score>=10": lambda r: r["label"] != "pos" and float(r["score"]) >= 10,
    "text~'film 1' or score in (3, 4)": lambda r: "film 1" in r["text"] or r["score"] in {"3", "4"},
    "not text~FILM*2": lambda r: not (r["text"].startswith("film") and r["text"].endswith("2")),
    "score<5": lambda r: float(r["score"]) < 5,
}


@pytest.mark.parametrize("where", FILTERS)
def test_filters_agree_with_python(registry: Registry, tmp_path: Path, where: str) -> None:
    parent = add(registry, tmp_path, "films", ROWS)
    made = derive(registry, parent, "few", {"do": "filter", "where": where}, Notes(), user="ada", now=2.0)
    for split, rows in ROWS.items():
        wanted = [row for row in rows if FILTERS[where](row)]
        assert (rows_of(made, split) if split in made.splits else []) == wanted
    assert verify(made) == []


def test_sample_split_and_map(registry: Registry, tmp_path: Path) -> None:
    parent = add(registry, tmp_path, "films", ROWS)

    def make(name: str, **operation: Any) -> DatasetVersion:
        return derive(registry, parent, name, operation, Notes(tags=("x",)), user="ada", now=2.0)

    first, again, other = (make(f"s{n}", do="sample", split="train", rows=7, seed=s) for n, s in enumerate((1, 1, 2)))
    assert first.digest == again.digest != other.digest
    chosen = rows_of(first, "train")
    assert (len(chosen), chosen) == (7, [row for row in ROWS["train"] if row in chosen])
    assert rows_of(first, "test") == ROWS["test"]
    divided = make("d", do="split", fractions=[0.8, 0.2], seed=3)
    assert divided.splits == {"train": 24, "validation": 6}
    both = [*rows_of(divided, "train"), *rows_of(divided, "validation")]
    assert Counter(map(str, both)) == Counter(map(str, [*ROWS["train"], *ROWS["test"]]))
    mapped = make("m", do="map", fields={"input": "{text} {{{label}}}"}, keep=["input", "score"])
    assert mapped.fields == ("input", "score")
    assert rows_of(mapped, "train")[1] == {"input": "film 1 {pos}", "score": "1"}
    assert (mapped.tags, mapped.source["derived"]["from"]) == (("x",), "films@1")
    graph = lineage(registry, "m")
    assert [(edge.source.key, edge.target.key, edge.how) for edge in graph.edges] == [("films@1", "m@1", "map")]
    assert len(lineage(registry, "films").nodes) == 6


@pytest.mark.parametrize(
    "operation",
    [
        {"do": "filter", "where": "lable=pos"},
        {"do": "filter", "where": "score > many"},
        {"do": "sample", "split": "dev", "rows": 3, "seed": 0},
        {"do": "sample", "split": "train", "rows": 21, "seed": 0},
        {"do": "map", "fields": {"a": "{b}"}},
        {"do": "map", "fields": {"a": "b"}, "keep": ["c"]},
        {"do": "dance"},
    ],
)
def test_what_cannot_be_derived_leaves_nothing(registry: Registry, tmp_path: Path, operation: dict[str, Any]) -> None:
    parent = add(registry, tmp_path, "films", ROWS)
    with pytest.raises(BadInput):
        derive(registry, parent, "x", operation, Notes(), user="ada", now=2.0)
    with pytest.raises(BadData, match="no rows are left"):
        derive(registry, parent, "x", {"do": "filter", "where": "label=none"}, Notes(), user="ada", now=2.0)
    assert [version.ref for version in list_versions(registry)] == ["films@1"]
    assert [path.name for path in registry.paths.store.iterdir()] == ["datasets"]


def test_the_difference_of_two_versions(registry: Registry, tmp_path: Path) -> None:
    old = add(registry, tmp_path, "films", ROWS)
    changed = [{**row, "text": "new"} if n == 4 else row for n, row in enumerate(ROWS["train"])][:-1]
    new = add(registry, tmp_path, "films", {"train": changed, "validation": ROWS["test"]})
    assert new.ref == "films@2"
    found = difference(old, new)
    assert found["splits"] == {"removed": ["test"], "added": ["validation"]}
    (train,) = found["rows"]
    assert (train["same"], train["removed"], train["added"]) == (18, 2, 1)
    assert (train["removed_rows"], train["added_rows"]) == ([ROWS["train"][4], ROWS["train"][19]], [changed[4]])
    turned = add(registry, tmp_path, "turned", {**ROWS, "train": ROWS["train"][::-1]})
    (train, test) = difference(old, turned)["rows"]
    assert (train["moved"], train["removed"], train["added"], test["moved"]) == (True, 0, 0, False)


def test_exported_rows_come_back_as_the_same_version(registry: Registry, tmp_path: Path) -> None:
    version = add(registry, tmp_path, "films", ROWS)
    for kind in ("parquet", "jsonl", "csv"):
        export_rows(version.path, version.fields, list(version.splits), tmp_path / kind, kind)
        files = {split: [tmp_path / kind / f"{split}.{kind}"] for split in ROWS}
        with stage(registry.paths, files, ReadOptions()) as staged:
            assert staged.digest == version.digest
    assert pq.read_table(tmp_path / "parquet" / "train.parquet").to_pylist() == ROWS["train"]
    with (tmp_path / "csv" / "test.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == ROWS["test"]


def test_notes_change_and_rows_do_not(registry: Registry, tmp_path: Path) -> None:
    version = add(registry, tmp_path, "films", ROWS)
    changed = annotate(registry, version, Notes("CC0-1.0", "somewhere", ("films", "small")))
    assert (changed.licence, changed.origin, changed.tags) == ("CC0-1.0", "somewhere", ("films", "small"))
    assert changed.digest == version.digest
    assert get_version(registry, "films") == changed
    with pytest.raises(BadInput, match="a tag"):
        annotate(registry, version, Notes(tags=("a b",)))


@settings(max_examples=60, deadline=None)
@given(st.text("ab*?.[\\", max_size=6), st.text("ab.[\\", max_size=6))
def test_a_pattern_is_never_a_regular_expression(pattern: str, text: str) -> None:
    from fnmatch import fnmatchcase

    quoted = pattern.replace("\\", "\\\\")
    found = filter_of(f"t~'{quoted}'", ["t"])((text,))
    if "*" in pattern or "?" in pattern:
        assert found == fnmatchcase(text, pattern.replace("[", "[[]"))
    else:
        assert found == (pattern in text)
