"""Every format, row by row: what is a row, what is a fault, and on which line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.data.checks import Checker
from orchestrator.data.lines import LONGEST_LINE
from orchestrator.data.readers import check_options, format_of, read_file
from orchestrator.data.rows import Fault, ReadOptions, Record
from orchestrator.errors import BadInput
from orchestrator.values import text_of


def read(path: Path, **options: Any) -> list[Record | Fault]:
    return list(read_file(path, ReadOptions(**options), lambda _bytes: None))


def rows(path: Path, **options: Any) -> list[tuple[int, dict[str, Any]]]:
    return [
        (item.line, dict(zip(item.names, item.values, strict=True)))
        for item in read(path, **options)
        if isinstance(item, Record)
    ]


def faults(path: Path, **options: Any) -> list[tuple[int, str]]:
    return [(item.line, item.reason) for item in read(path, **options) if isinstance(item, Fault)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_csv_quoting_and_the_lines_of_rows(file: Path) -> None:
    file.write_bytes(b'\xef\xbb\xbfa,b\r\n"one ""quoted""","two\r\nlines"\r\nthree,four\r\n5,6,7\r\neight,nine\r\n\r\n')
    options = {"format": "csv"}
    assert rows(file, **options) == [
        (2, {"a": 'one "quoted"', "b": "two\nlines"}),
        (4, {"a": "three", "b": "four"}),
        (6, {"a": "eight", "b": "nine"}),
    ]
    assert faults(file, **options) == [(5, "3 columns where 2 are expected (a, b)")]


def test_csv_names_the_very_line_of_a_bad_byte(file: Path) -> None:
    file.write_bytes(b'a,b\n1,"x\ny\xe9\nz"\n3,4\n')
    assert faults(file, format="csv") == [(3, "not UTF-8 (byte 0xe9 at character 2)")]
    assert rows(file, format="csv") == [(5, {"a": "3", "b": "4"})]


def test_csv_with_a_quote_that_is_never_closed_cannot_go_on(file: Path) -> None:
    file.write_bytes(b'a,b\n1,2\n3,"four\n5,caf\xe9\n7,8\n')
    bad = [item for item in read(file, format="csv") if isinstance(item, Fault)]
    assert [(item.line, item.reason, item.fatal) for item in bad] == [
        (3, "the quote opened here is not closed (read up to line 5)", True)
    ]


def test_csv_with_a_stray_quote_does_not_lose_the_rows_it_swallows(file: Path) -> None:
    file.write_text('a,b\n1,"two\n3,4\n5,6\n7,"eight\n9,10\n')
    (fault,) = (item for item in read(file, format="csv") if isinstance(item, Fault))
    assert (fault.line, fault.fatal) == (2, True)
    assert "runs on to line 5" in fault.reason


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_header_that_cannot_be_read_is_fatal(file: Path, kind: str) -> None:
    file.write_bytes(b"a,caf\xe9\n1,2\n")
    (fault,) = read(file, format=kind)
    assert isinstance(fault, Fault)
    assert (fault.line, fault.fatal) == (1, True)


def test_csv_with_rubbish_after_a_quote_goes_on(file: Path) -> None:
    file.write_text('a,b\n"x"y,2\n3,4\n')
    assert [line for line, _ in faults(file, format="csv")] == [2]
    assert rows(file, format="csv") == [(3, {"a": "3", "b": "4"})]


def test_csv_takes_another_delimiter_and_names(file: Path) -> None:
    file.write_text("x;y\n1;2\n")
    assert rows(file, format="csv", delimiter=";") == [(2, {"x": "1", "y": "2"})]
    assert rows(file, format="csv", delimiter=";", columns=("p", "q"), header=True) == [(2, {"p": "1", "q": "2"})]
    assert rows(file, format="csv", delimiter=";", columns=("p", "q"))[0] == (1, {"p": "x", "q": "y"})


def test_tsv_has_no_quoting(file: Path) -> None:
    file.write_text("a\tb\n\"half\tquote's\n")
    assert rows(file, format="tsv") == [(2, {"a": '"half', "b": "quote's"})]


def test_delimited_counts_columns_and_lines(file: Path) -> None:
    file.write_text("s||t \n\nno delimiter\na||b||c\nx||\n\n\n")
    options = {"format": "delimited", "delimiter": "||", "columns": ("source", "target")}
    assert rows(file, **options) == [(1, {"source": "s", "target": "t "}), (5, {"source": "x", "target": ""})]
    assert [line for line, _ in faults(file, **options)] == [2, 3, 4]  # the blank end of the file is no row
    assert faults(file, **options)[2][1] == "3 columns where 2 are expected (source, target)"


def test_split_first_gives_the_rest_to_the_last_column(file: Path) -> None:
    file.write_text("1 a b c\n0 d\nalone\n")
    options = {"format": "delimited", "delimiter": " ", "columns": ("label", "sentence"), "split_first": True}
    assert rows(file, **options) == [(1, {"label": "1", "sentence": "a b c"}), (2, {"label": "0", "sentence": "d"})]
    assert [line for line, _ in faults(file, **options)] == [3]


def test_only_line_feeds_end_lines(file: Path) -> None:
    file.write_bytes("a\u2028b\u0085c\rd\x0be\r\nf".encode())
    assert [row["text"] for _, row in rows(file, format="text")] == ["a\u2028b\u0085c\rd\x0be", "f"]


def test_text_leaves_blank_lines_out_and_keeps_numbers(file: Path) -> None:
    file.write_text("one\n\n  \nfour")
    assert rows(file, format="text") == [(1, {"text": "one"}), (4, {"text": "four"})]


def test_an_endless_line_is_reported_and_skipped(file: Path) -> None:
    file.write_bytes(b"a\n" + b"x" * (LONGEST_LINE + 10) + b"\nc\n")
    assert [(line, reason[:11]) for line, reason in faults(file, format="text")] == [(2, "longer than")]
    assert [line for line, _ in rows(file, format="text")] == [1, 3]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1", "gb18030"])
def test_other_encodings_are_reported_by_line(file: Path, encoding: str) -> None:
    file.write_bytes("text é 好\n".encode(encoding, errors="ignore") + b"\xff\n")
    found = faults(file, format="text")
    assert found
    assert all(reason.startswith("not UTF-8 (byte 0x") for _, reason in found)


def test_json_lines(file: Path) -> None:
    file.write_bytes('{"a": 1, "b": "好"}\r\n\r\n{"a": 2, "b": "x"}\n'.encode())
    assert rows(file, format="jsonl") == [(1, {"a": 1, "b": "好"}), (3, {"a": 2, "b": "x"})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON (Expecting property name"),
        ('{"a": 1} {"a": 2}', "not JSON (Extra data"),
        ('{"a": NaN}', "not JSON (NaN is not JSON)"),
        ('{"a": 1, "a": 2}', "not JSON (the key 'a' stands twice)"),
        ("[1]x", "not JSON"),
        ('"text"', "not an object with named fields but a string"),
        ("null", "not an object with named fields but null"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "not JSON (nested too deeply)"),
        ('{"a": ' + "1" * 5000 + "}", "not JSON (Exceeds the limit"),
    ],
)
def test_bad_json_lines(file: Path, line: str, reason: str) -> None:
    file.write_text('{"a": 0}\n' + line + '\n{"a": 3}\n')
    found = faults(file, format="jsonl")
    assert [number for number, _ in found] == [2]
    assert found[0][1].startswith(reason)
    assert [number for number, _ in rows(file, format="jsonl")] == [1, 3]


def test_a_json_array_is_read_by_any_json_format(file: Path) -> None:
    file.write_text('\n[\n {"a": "1"},\n\n {"a":\n "2"}\n ]\n')
    for name in ("json", "jsonl"):
        assert rows(file, format=name) == [(3, {"a": "1"}), (5, {"a": "2"})]
        assert faults(file, format=name) == []


@pytest.mark.parametrize(
    "text", ['[{"a": 1}', '[{"a": 1},]', '[{"a": 1} {"a": 2}]', '[{"a": 1}] x', '[{"a": 1},\n{"a": ]', "[,]"]
)
def test_a_broken_json_array_is_fatal(file: Path, text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)
    file.write_text(text)
    assert [item.fatal for item in read(file, format="json") if isinstance(item, Fault)] == [True]


@pytest.mark.parametrize("text", ["[]", "[ \n]", '[{"a": "],"}]', '[ {"a": [1, {"b": 2}]} , {"a": 3} ]'])
def test_a_sound_json_array_is_what_json_says_it_is(file: Path, text: str) -> None:
    file.write_text(text)
    assert [row for _, row in rows(file, format="json")] == json.loads(text)
    assert faults(file, format="json") == []


def test_parquet_rows_have_numbers(file: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2, None], "b": ["x", None, "z"]}), file)
    assert rows(file, format="parquet") == [
        (1, {"a": 1, "b": "x"}),
        (2, {"a": 2, "b": None}),
        (3, {"a": None, "b": "z"}),
    ]


def test_parquet_with_two_columns_of_one_name_is_refused(file: Path) -> None:
    columns = [pa.array(["x"] * 9), pa.array(["y"] * 9)]
    pq.write_table(pa.Table.from_arrays(columns, names=["t", "t"]), file)
    first = read(file, format="parquet")[0]
    assert isinstance(first, Record)
    with pytest.raises(BadInput, match="'t' stands twice"):
        Checker(ReadOptions()).values(first, "a.parquet")


def test_parquet_with_a_string_that_is_not_utf8(file: Path) -> None:
    data = pa.array([b"ok", b"caf\xe9", b"fine"], pa.binary())
    strings = pa.Array.from_buffers(pa.string(), 3, data.buffers())
    pq.write_table(pa.table({"a": strings}), file)
    assert [line for line, _ in faults(file, format="parquet")] == [2]
    assert [line for line, _ in rows(file, format="parquet")] == [1, 3]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"a,b\n1,2\n"])
def test_what_is_not_parquet_is_fatal(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    (fault,) = read(file, format="parquet")
    assert isinstance(fault, Fault)
    assert fault.fatal
    assert fault.reason.startswith("not readable as Parquet")


@pytest.mark.parametrize("header", ["a,,c", "a,a", ""])
def test_a_header_must_name_every_column_once(file: Path, header: str) -> None:
    file.write_text(header + "\n1,2,3\n")
    with pytest.raises(BadInput, match=r"data:[12]: .*name the columns"):
        rows(file, format="csv")


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("x.csv", {}, "csv"),
        ("x.TSV", {}, "tsv"),
        ("x.json", {}, "json"),
        ("x.ndjson", {}, "jsonl"),
        ("x.parquet", {}, "parquet"),
        ("x.txt", {}, "text"),
        ("x.txt", {"delimiter": "||"}, "delimited"),
        ("stsa.binary.dev", {"delimiter": " "}, "delimited"),
        ("x.csv", {"delimiter": ";"}, "csv"),
        ("x", {"format": "text"}, "text"),
    ],
)
def test_the_format_is_guessed_from_the_suffix(name: str, options: dict[str, Any], expected: str) -> None:
    assert format_of(Path(name), ReadOptions(**options)) == expected


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("x", {}, "does not tell the format"),
        ("x.csv", {"format": "xls"}, "no format 'xls'"),
        ("x", {"format": "delimited", "columns": ("a",)}, "needs a delimiter"),
        ("x.csv", {"delimiter": "||"}, "delimiter of one character"),
        ("x.jsonl", {"columns": ("a",)}, "not for jsonl"),
        ("x.txt", {"columns": ("a",)}, "not for text"),
        ("x.csv", {"columns": ("a", "a")}, "named twice"),
    ],
)
def test_options_that_do_not_fit_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_options(Path(name), ReadOptions(**options))


def test_delimited_without_names_is_refused(file: Path) -> None:
    file.write_text("1||2\n")
    with pytest.raises(BadInput, match="--columns"):
        read(file, format="delimited", delimiter="||", header=False)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "x"),
        (True, "true"),
        (12, "12"),
        (1.0, "1.0"),
        (0.1, "0.1"),
        ({"b": [1, None, "好"], "a": {"x": True}}, '{"a":{"x":true},"b":[1,null,"好"]}'),
        (b"caf\xc3\xa9", "café"),
    ],
)
def test_values_have_one_text(value: object, text: str) -> None:
    assert text_of(value) == text


@pytest.mark.parametrize("value", ["a\0b", "\ud83d", float("nan"), float("inf"), b"\xff", [float("nan")], ["\ud83d"]])
def test_values_without_a_text(value: object) -> None:
    with pytest.raises(ValueError):
        text_of(value)


def test_the_real_files_agree_with_other_readers(shared_data: Path) -> None:
    path = shared_data / "e2e" / "cleaned_devel-fixed.no-ol.csv"
    with path.open(newline="", encoding="utf-8") as source:
        expected = list(csv.DictReader(source))
    assert [row for _, row in rows(path)] == expected
    path = shared_data / "e2e" / "src1_train.lines00001-20000.txt"
    lines = path.read_text(encoding="utf-8").split("\n")
    found = rows(path, delimiter="||", columns=("source", "target"))
    assert len(found) == 20_000
    assert all(f"{row['source']}||{row['target']}" == lines[line - 1] for line, row in found)
    assert found[2010] == (2011, {"source": lines[2010].split("||")[0], "target": "Café "})
    for name, count in (("dev", 872), ("test", 1821), ("train", 6920)):
        path = shared_data / "sst2" / f"stsa.binary.{name}"
        found = rows(path, delimiter=" ", columns=("label", "sentence"), split_first=True)
        assert (len(found), {row["label"] for _, row in found}) == (count, {"0", "1"})
        assert faults(path, delimiter=" ", columns=("label", "sentence"), split_first=True) == []
    for path in sorted((shared_data / "zh" / "eprstmt").glob("*.json")):
        assert [row for _, row in rows(path)] == [
            json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line
        ]
