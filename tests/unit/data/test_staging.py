"""From files to a staged version: checks, splits, digests, and nothing left behind."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator import manifest
from orchestrator.data import layout, store
from orchestrator.data.rows import ReadOptions
from orchestrator.data.splits import SplitPlan, assign, parse_split
from orchestrator.data.staging import Staged, stage
from orchestrator.errors import BadData, BadInput, NotFound, RegistryUnusable
from orchestrator.paths import HomePaths

Row = dict[str, Any]


def jsonl(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def staged_of(
    home: Path, files: Mapping[str, Sequence[Path]], plan: SplitPlan | None = None, **options: Any
) -> tuple[Staged, dict[str, list[tuple[str, ...]]], list[dict[str, Any]]]:
    """(the version, its rows by split, what was set aside)."""
    with stage(HomePaths(home), files, ReadOptions(**options), plan=plan) as staged:
        assert manifest.manifest_faults(staged.folder) == []
        aside = {"bad_rows.jsonl"} if staged.bad_rows else set()
        arrow = {f"{split}.arrow" for split in staged.splits}
        assert {path.name for path in staged.folder.iterdir()} == {"manifest.json", "version.json"} | arrow | aside
        rows = {split: list(store.read_rows(staged.folder, split)) for split in staged.splits}
        assert {split: len(found) for split, found in rows.items()} == staged.splits
        assert store.digest_of(staged.folder, staged.fields, staged.splits) == staged.digest
        return staged, rows, layout.bad_rows(staged.folder)


def refused(home: Path, files: Mapping[str, Sequence[Path]], plan: SplitPlan | None = None, **options: Any) -> BadInput:
    with pytest.raises(BadInput) as caught, stage(HomePaths(home), files, ReadOptions(**options), plan=plan):
        pytest.fail("was not refused")
    return caught.value


GOOD = [{"text": f"row {number}", "label": number % 2} for number in range(20)]


def test_a_staged_version_and_its_digest_by_the_documented_rule(home: Path, tmp_path: Path) -> None:
    train, test = jsonl(tmp_path / "a.jsonl", GOOD), jsonl(tmp_path / "b.jsonl", [{"label": 7, "text": "é\n"}])
    staged, rows, _ = staged_of(home, {"train": [train], "test": [test]})
    assert staged.fields == ("text", "label")
    assert rows["test"] == [("é\n", "7")]
    parts = [
        [split, len(found), hashlib.sha256("".join(_line(row) for row in found).encode()).hexdigest()]
        for split, found in sorted(rows.items())
    ]
    facts = json.dumps({"format": 1, "fields": ["text", "label"], "splits": parts}, separators=(",", ":"))
    assert staged.digest == "sha256:" + hashlib.sha256(facts.encode()).hexdigest()


def _line(row: tuple[str, ...]) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"


def test_what_is_not_taken_is_removed(home: Path, tmp_path: Path) -> None:
    new_home = home / "deeper" / "still"
    staged, _, _ = staged_of(new_home, {"train": [jsonl(tmp_path / "a.jsonl", GOOD)]})
    assert not staged.folder.exists()
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"text": "a"}, {"text": ""}], "2: the field 'text' is empty"),
        ([{"text": "a"}, {"text": " \t\u00a0"}], "2: the field 'text' is empty"),
        ([{"text": "a"}, {"text": None}], "2: the field 'text' is null"),
        ([{"text": "a"}, {"txet": "b"}], "2: lacks the field 'text'"),
        ([{"text": "a"}, {"text": "b", "more": 1}], "2: has the field 'more', which the first row"),
        ([{"text": "a\0"}], "1: the field 'text' holds a NUL character"),
        ([{"text": "\ud83d"}], "1: the field 'text' holds half a character"),
        ([{"text": "a"}, {"text": 1e999}], "2: not JSON"),
    ],
)
def test_bad_rows_are_refused_by_line(home: Path, tmp_path: Path, rows: list[Row], reason: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", rows)
    error = refused(home, {"train": [path]})
    assert isinstance(error, BadData)
    assert error.exit_code == 2
    assert f"1 of {len(rows)} row" in error.message
    assert f"{path}:{reason}" in error.message
    assert "--skip-bad" in error.hint
    assert list(home.iterdir()) == []


def test_ten_faults_are_shown_and_the_rest_counted(home: Path, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [*GOOD, *[{"text": "", "label": 1}] * 1234])
    message = refused(home, {"train": [path]}).message
    assert message.startswith("1,234 of 1,254 rows cannot be used; nothing was written\n")
    assert message.count("is empty") == 10
    assert f"{path}:21: " in message
    assert f"{path}:30: " in message
    assert message.endswith("and 1,224 more")


def test_skip_bad_sets_aside_and_keeps(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"s||t\nno delimiter\ncaf\xe9||x\n||y\n" + b"z" * 5000 + b"\nu||v\n")
    staged, rows, aside = staged_of(
        home, {"train": [path]}, skip_bad=True, delimiter="||", columns=("source", "target")
    )
    assert rows == {"train": [("s", "t"), ("u", "v")]}
    assert staged.bad_rows == 4
    assert [(row["file"], row["line"]) for row in aside] == [(str(path), line) for line in (2, 3, 4, 5)]
    assert aside[0]["raw"] == "no delimiter"
    assert aside[1]["raw"] == "caf\\xe9||x"
    assert len(aside[3]["raw"]) == 2000


def test_what_cannot_be_skipped_is_refused_even_so(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,2\n3,"four\n' + "5,6\n" * 100)
    error = refused(home, {"train": [path]}, skip_bad=True)
    assert "the quote opened here is not closed (read up to line 103)" in error.message
    assert list(home.iterdir()) == []


def test_all_rows_bad_is_empty(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{\n{\n")
    assert "no rows left: 2 were bad" in refused(home, {"train": [path]}, skip_bad=True).message


@pytest.mark.parametrize("plan", [None, SplitPlan((0.5, 0.5), 0)])
@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", ""), ("a.csv", "a,b\n"), ("a.txt", "\n\n"), ("a.json", "[]")]
)
def test_an_empty_dataset_is_refused(
    home: Path, tmp_path: Path, name: str, content: str, plan: SplitPlan | None
) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert "no rows" in refused(home, {"train": [path]}, plan).message
    assert list(home.iterdir()) == []


def test_an_empty_split_is_refused(home: Path, tmp_path: Path) -> None:
    empty = jsonl(tmp_path / "b.jsonl", [])
    error = refused(home, {"train": [jsonl(tmp_path / "a.jsonl", GOOD)], "test": [empty]})
    assert "the split 'test' has no rows" in error.message
    assert str(empty) in error.where


def test_fields_that_need_not_be_filled(home: Path, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"q": "a", "l": 1}, {"q": "b", "l": None}, {"q": "c"}, {"q": "d", "l": ""}])
    _, rows, _ = staged_of(home, {"train": [path]}, required=("q",))
    assert rows["train"] == [("a", "1"), ("b", ""), ("c", ""), ("d", "")]


def test_keep_chooses_fields(home: Path, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"a": 1, "b": 2, "c": None}, {"c": 3, "b": 5, "a": 4, "d": 6}])
    staged, rows, _ = staged_of(home, {"train": [path]}, keep=("b", "a"))
    assert (staged.fields, rows["train"]) == (("b", "a"), [("2", "1"), ("5", "4")])


@pytest.mark.parametrize("option", ["keep", "required"])
def test_an_unknown_field_is_refused_with_a_hand(home: Path, tmp_path: Path, option: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", GOOD)
    error = refused(home, {"train": [path]}, **{option: ("lable",)})
    assert error.hint == "did you mean 'label'?"
    assert list(home.iterdir()) == []


def test_strip_removes_white_space_at_both_ends(home: Path, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"t": "  a b \n"}])
    assert staged_of(home, {"train": [path]}, strip=True)[1]["train"] == [("a b",)]
    assert staged_of(home, {"train": [path]})[1]["train"] == [("  a b \n",)]


def test_repeated_rows_are_counted_not_refused(home: Path, tmp_path: Path) -> None:
    train = jsonl(tmp_path / "a.jsonl", [{"t": "x"}, {"t": "y"}, {"t": "x"}, {"t": "x"}])
    test = jsonl(tmp_path / "b.jsonl", [{"t": "y"}, {"t": "z"}])
    staged, _, _ = staged_of(home, {"train": [train], "test": [test]})
    assert (staged.duplicates, staged.shared) == (2, 1)


def test_files_of_one_split_follow_each_other(home: Path, tmp_path: Path) -> None:
    first, second = jsonl(tmp_path / "a.jsonl", GOOD[:3]), jsonl(tmp_path / "b.jsonl", GOOD[3:5])
    one = staged_of(home, {"train": [first, second]})[0]
    two = staged_of(home, {"train": [jsonl(tmp_path / "c.jsonl", GOOD[:5])]})[0]
    assert one.digest == two.digest
    assert one.source["files"]["train"] == [str(first), str(second)]


def test_a_split_divides_all_rows_by_the_seed(home: Path, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"t": str(number)} for number in range(1000)])
    staged, rows, _ = staged_of(home, {"train": [path]}, parse_split("0.8/0.1/0.1", 5))
    again, _, _ = staged_of(home, {"train": [path]}, parse_split("0.8/0.1/0.1", 5))
    other, _, _ = staged_of(home, {"train": [path]}, parse_split("0.8/0.1/0.1", 6))
    assert staged.splits == {"train": 800, "validation": 100, "test": 100}
    numbers = [[int(text) for (text,) in found] for found in rows.values()]
    assert sorted(number for found in numbers for number in found) == list(range(1000))
    assert all(found == sorted(found) for found in numbers)  # the file's order within each split
    assert again.digest == staged.digest != other.digest


def test_the_assignment_is_uniform_and_fixed_for_ever() -> None:
    # Written down once: a new Python must not divide the same data differently.
    assert list(assign(12, SplitPlan((0.5, 0.5), 7))) == [1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 0]
    counts = [0] * 40
    for seed in range(400):
        for row, index in enumerate(assign(40, SplitPlan((0.75, 0.25), seed))):
            counts[row] += index
    assert sum(counts) == 400 * 10
    assert 60 < min(counts) <= max(counts) < 145  # 100 expected, standard deviation 8.7


@pytest.mark.parametrize("text", ["0.9", "0.9/0.2", "a/b", "1/0", "0.5/0.2/0.2/0.1", "-0.1/1.1", ""])
def test_splits_that_make_no_sense(text: str) -> None:
    with pytest.raises(BadInput, match="--split"):
        parse_split(text, 0)


def test_too_few_rows_for_a_split(home: Path, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", GOOD[:3])
    assert "validation would be empty" in refused(home, {"train": [path]}, parse_split("0.9/0.1", 0)).message
    assert list(home.iterdir()) == []


def test_missing_files_and_folders(home: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(NotFound, match="no such file"),
        stage(HomePaths(home), {"train": [tmp_path / "no.csv"]}, ReadOptions()),
    ):
        pytest.fail("was not refused")
    assert "not a file" in refused(home, {"train": [tmp_path]}).message
    assert list(home.iterdir()) == []


def test_an_interruption_leaves_nothing(home: Path, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"t": "x" * 1000} for _ in range(2000)])

    def interrupt(_bytes: int) -> None:
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        stage(HomePaths(home), {"train": [path]}, ReadOptions(), advance=interrupt),
    ):
        pytest.fail("went on")
    assert list(home.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_a_live_one_is_not(home: Path, tmp_path: Path) -> None:
    abandoned = home / "store" / ".staging-dead"
    abandoned.mkdir(parents=True)
    os.utime(abandoned, (0, 0))
    path = jsonl(tmp_path / "a.jsonl", GOOD)
    with stage(HomePaths(home), {"train": [path]}, ReadOptions()) as first:
        os.utime(first.folder, (0, 0))
        with stage(HomePaths(home), {"train": [path]}, ReadOptions()) as second:
            assert not abandoned.exists()
            assert first.folder.exists()
            assert second.folder.exists()


def test_a_store_that_cannot_be_made_is_said(home: Path, tmp_path: Path) -> None:
    (home / "store").write_text("a file")
    path = jsonl(tmp_path / "a.jsonl", GOOD)
    with (
        pytest.raises(RegistryUnusable, match="store cannot be written"),
        stage(HomePaths(home), {"train": [path]}, ReadOptions()),
    ):
        pytest.fail("went on")


def test_many_batches(home: Path, tmp_path: Path) -> None:
    generator = random.Random(3)
    rows = [{"t": f"{number} " + "x" * generator.randrange(5000)} for number in range(9000)]
    _, found, _ = staged_of(home, {"train": [jsonl(tmp_path / "a.jsonl", rows)]})
    assert [text for (text,) in found["train"]] == [row["t"] for row in rows]
