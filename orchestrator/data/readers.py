"""From a file's format to the reader that knows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from orchestrator.data.columns import Columns
from orchestrator.data.delimited import read_csv, read_delimited, read_text
from orchestrator.data.json_rows import holds_array, read_json_array, read_json_lines
from orchestrator.data.parquet import read_parquet
from orchestrator.data.rows import FORMATS, SUPERGLUE, Advance, Fault, ReadOptions, Record
from orchestrator.data.superglue import read_superglue
from orchestrator.errors import BadInput

_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
}


def format_of(path: Path, options: ReadOptions) -> str:
    """The format that was asked for, else by the suffix. A delimiter that is given makes a .txt `delimited`."""
    if options.format:
        if options.format not in FORMATS:
            raise BadInput(f"no format {options.format!r}", where="--format", hint=f"one of: {', '.join(FORMATS)}")
        return options.format
    guessed = _SUFFIXES.get(path.suffix.lower())
    if options.delimiter is not None and guessed in {None, "text"}:
        return "delimited"
    if guessed is None:
        raise BadInput(
            f"the suffix {path.suffix!r} does not tell the format",
            where=str(path),
            hint=f"say it: `--format F`, one of: {', '.join(FORMATS)}",
        )
    return guessed


def check_options(path: Path, options: ReadOptions) -> None:
    """Refuse what cannot be read before anything is made. Raises BadInput."""
    kind = format_of(path, options)
    if kind == "delimited" and not options.delimiter:
        raise BadInput("--format delimited needs a delimiter", hint="e.g. `--delimiter '||' --columns source,target`")
    if kind == "csv" and options.delimiter and len(options.delimiter) != 1:
        raise BadInput(
            f"CSV takes a delimiter of one character, not {options.delimiter!r}",
            where="--delimiter",
            hint="longer ones: `--format delimited`, where quotes mean nothing",
        )
    if kind in {"jsonl", "json", "parquet", "text", *SUPERGLUE}:
        given = [name for name, value in _layout(options) if value]
        if given:
            raise BadInput(
                f"{' and '.join(given)}: not for {kind}", where=str(path), hint="choose fields with `--keep`"
            )
    if len(set(options.columns)) != len(options.columns) or "" in options.columns:
        raise BadInput("a column is named twice or has no name", where="--columns")


def read_file(path: Path, options: ReadOptions, advance: Advance) -> Iterator[Record | Fault]:
    """Every row of a file, good or bad."""
    for item in read_columns(path, options, advance):
        if isinstance(item, Columns):
            yield from item.rows()
        else:
            yield item


def read_columns(path: Path, options: ReadOptions, advance: Advance) -> Iterator[Columns | Record | Fault]:
    """The same, many rows at once where they look alike."""
    match format_of(path, options):
        case "csv":
            return read_csv(path, options, advance)
        case "tsv":
            return read_delimited(path, options, options.delimiter or "\t", advance)
        case "delimited":
            return read_delimited(path, options, options.delimiter or "\t", advance)
        case "text":
            return read_text(path, advance)
        case "parquet":
            return read_parquet(path, advance)
        case kind if kind in SUPERGLUE:
            return read_superglue(path, kind.removeprefix("superglue-"), advance)
        case _:
            return read_json_array(path, advance) if holds_array(path) else read_json_lines(path, advance)


def _layout(options: ReadOptions) -> list[tuple[str, bool]]:
    return [
        ("--columns", bool(options.columns)),
        ("--delimiter", options.delimiter is not None),
        ("--header", options.header is not None),
        ("--split-first", options.split_first),
    ]
