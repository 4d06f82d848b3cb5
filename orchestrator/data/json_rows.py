"""JSON lines (one object a line) and a JSON array of objects."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from orchestrator.data.columns import Columns
from orchestrator.data.lines import Block, blocks
from orchestrator.data.rows import Advance, Fault, Record

_SPACE = " \t\r\n"


def holds_array(path: Path) -> bool:
    """Whether the first thing in the file is `[`."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip(_SPACE.encode())
    return start.startswith(b"[")


def decode(text: str) -> Any:
    """One value, as strictly as a dataset's: no key twice, no NaN. Raises ValueError."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(_reason(error)) from error


def read_json_lines(path: Path, advance: Advance) -> Iterator[Columns | Record | Fault]:
    """One object a line. Blank lines are no rows."""
    for block in blocks(path, advance):
        columns = _columns(path, block)
        if columns is None:
            yield from _records(path, block)
        else:
            yield columns


def _records(path: Path, block: Block) -> Iterator[Record | Fault]:
    for line in block.lines():
        if line.fault:
            yield Fault(str(path), line.number, line.fault, line.text)
        elif line.text.strip(_SPACE):
            try:
                value = _DECODER.decode(line.text)
            except (ValueError, RecursionError) as error:
                yield Fault(str(path), line.number, f"not JSON ({_reason(error)})", line.text)
            else:
                yield _record(path, line.number, value, line.text)


def _columns(path: Path, block: Block) -> Columns | None:
    """All lines as one array, where each is an object with the same keys and nothing nested in it."""
    try:
        text = block.data.decode().removesuffix("\n").removesuffix("\r")
        lines = text.count("\n") + 1
        begun_and_ended = text.count("}\n{") + text.count("}\r\n{") == lines - 1 and text[:1] + text[-1:] == "{}"
        found = _rows_of(text, lines) if begun_and_ended and not block.odd else []
        names = tuple(found[0]) if len(found) == lines else ()
        if not names or set(map(len, found)) != {len(names)}:
            return None
        values = [[row[name] for row in found] for name in names]
    except (ValueError, KeyError, RecursionError):
        return None
    if any(not {dict, list}.isdisjoint(map(type, column)) for column in values):
        return None  # objects in objects: then a line that ends with } need not end an object
    return Columns(names, values, lines, partial(_records, path, block))


def _rows_of(text: str, lines: int) -> list[dict[str, Any]]:
    """Raises ValueError. The strict decoder asks Python about each object; it is needed where a key may stand twice:
    where `":` does not stand once for each key of each line."""
    array = "[" + text.replace("\n", ",\n") + "]"  # the line ends stay: in a text they are wrong here as there
    if _SPACED_COLON.search(text) is None:
        found: list[dict[str, Any]] = _FAST_DECODER.decode(array)
        if text.count('":') == sum(map(len, found)):
            return found
    strict: list[dict[str, Any]] = _DECODER.decode(array)
    return strict


def read_json_array(path: Path, advance: Advance) -> Iterator[Record | Fault]:
    """`[{…}, {…}]`. The whole file is held in memory: an array has no line on which reading could begin again."""
    raw = path.read_bytes()
    advance(len(raw))
    try:
        text = raw.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        yield Fault(str(path), line, f"not UTF-8 (byte 0x{raw[error.start]:02x})", fatal=True)
        return
    yield from _array_rows(path, text)


def _array_rows(path: Path, text: str) -> Iterator[Record | Fault]:
    position, line, counted = _past_space(text, 0) + 1, 1, 0
    first = True
    while True:
        position = _past_space(text, position)
        line, counted = line + text.count("\n", counted, position), position
        if text[position : position + 1] == "]" and (first or text[:position].rstrip(_SPACE)[-1:] != ","):
            if text[position + 1 :].strip(_SPACE):
                yield Fault(str(path), line, "not JSON (something follows the end of the array)", fatal=True)
            return
        try:
            value, end = _DECODER.raw_decode(text, position)
            after = _past_space(text, end)
            if text[after : after + 1] not in {",", "]"}:
                raise ValueError("a comma or ] is missing")
        except (ValueError, RecursionError) as error:
            yield Fault(str(path), line, f"not JSON ({_reason(error)})", text[position : position + 200], fatal=True)
            return
        yield _record(path, line, value, text[position:end])
        first = False
        position = after + 1 if text[after] == "," else after


def _record(path: Path, line: int, value: Any, raw: str) -> Record | Fault:
    if not isinstance(value, dict):
        return Fault(str(path), line, f"not an object with named fields but {_KINDS.get(type(value), 'a value')}", raw)
    return Record(line, tuple(value), tuple(value.values()), raw)


_KINDS: dict[type, str] = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _past_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in _SPACE:
        position += 1
    return position


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


_SPACED_COLON = re.compile(r'"[ \t\r\n]+:')
_FAST_DECODER = json.JSONDecoder(parse_constant=_refuse)
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)
