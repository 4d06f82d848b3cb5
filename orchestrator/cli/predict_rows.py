"""The rows that `ptq predict` reads: files of every format that datasets have, and standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from orchestrator.errors import BadData, BadInput, NotFound
from orchestrator.values import field_text

_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")


def file_rows(path: Path, fields: list[str]) -> Iterator[dict[str, str]]:
    from orchestrator.data.readers import read_file
    from orchestrator.data.rows import Fault, ReadOptions

    if path.is_dir():
        raise BadInput("is a folder", where=str(path), hint="name a file of rows, or - for standard input")
    if not path.exists():
        raise NotFound("there is no such file", where=str(path), hint="name a file of rows, or - for standard input")
    if path.suffix.lower() not in _SUFFIXES:
        hint = f"name it {', '.join(_SUFFIXES)}, or pipe JSON lines: --input -"
        raise BadInput(f"the suffix {path.suffix!r} does not tell the format", where=str(path), hint=hint)
    plain = path.suffix.lower() == ".txt" and len(fields) == 1
    for record in read_file(path, ReadOptions(), lambda _: None):
        if isinstance(record, Fault):
            raise BadData(record.reason, where=f"{path}:{record.line}", hint="mend the row; nothing was predicted")
        names = fields if plain else record.names
        yield _row(dict(zip(names, record.values, strict=False)), fields, f"{path}:{record.line}")


def stdin_rows(fields: list[str]) -> Iterator[dict[str, str]]:
    """JSON objects, one a line; plain lines where the artifacts read a single field."""
    for number, line in enumerate(_lines(sys.stdin), start=1):
        where = f"standard input, line {number}"
        row = _json_object(line, where)
        if row is None and len(fields) != 1:
            hint = f"write one a line, with the fields {', '.join(fields)}"
            raise BadData("not a JSON object", where=where, hint=hint)
        yield _row({fields[0]: line} if row is None else row, fields, where)


def _lines(stream: IO[str]) -> Iterator[str]:
    """Without blank ones."""
    try:
        for line in stream:
            if text := line.rstrip("\r\n"):
                yield text
    except UnicodeDecodeError as error:
        what = f"not UTF-8 (byte 0x{error.object[error.start]:02x})"
        raise BadData(what, where="standard input", hint="convert it: `iconv -f LATIN1 -t UTF-8`") from error


def _json_object(line: str, where: str) -> dict[str, Any] | None:
    """The line as an object, read as strictly as a dataset's; None: it is none."""
    from orchestrator.data.json_rows import decode

    try:
        if not isinstance(json.loads(line), dict):
            return None
    except ValueError:
        return None
    try:
        value: dict[str, Any] = decode(line)
    except ValueError as error:
        raise BadData(f"not a row of JSON: {error}", where=where, hint="mend it; nothing was predicted") from error
    return value


def _row(values: dict[str, Any], fields: list[str], where: str) -> dict[str, str]:
    """In the one text form that datasets have, with every field that is read."""
    row = {}
    for name, value in values.items():
        try:
            row[name] = field_text(value)
        except ValueError as error:
            hint = "mend the row; nothing was predicted"
            raise BadData(f"the field {name} {error}", where=where, hint=hint) from error
    missing = [name for name in fields if name not in row]
    if missing:
        what, have = f"the row lacks {', '.join(missing)}", ", ".join(row) or "none"
        raise BadData(what, where=where, hint=f"the artifact reads {', '.join(fields)}; the row has {have}")
    return row
