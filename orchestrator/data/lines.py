"""A file's lines with their numbers. Lines end with LF or CRLF, nothing else (no U+2028, no lone CR)."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from orchestrator.data.rows import Advance

#: A longer line is no row of text but another kind of file; it is reported and never held in memory.
LONGEST_LINE = 1 << 24
#: How often progress is told: a call per line would cost as much as reading it.
_TOLD_EVERY = 1 << 18


@dataclass(frozen=True, slots=True)
class Line:
    number: int  #: from 1
    text: str  #: without its end; where `fault` is set, for display only
    fault: str | None = None


def numbered_lines(path: Path, advance: Advance) -> Iterator[Line]:
    """Every line of a UTF-8 file (a byte order mark is accepted)."""
    number = untold = 0
    with path.open("rb") as file:
        while raw := file.readline(LONGEST_LINE + 1):
            number += 1
            untold += len(raw)
            if untold >= _TOLD_EVERY:
                advance(untold)
                untold = 0
            if len(raw) > LONGEST_LINE:
                untold += _skip_line(file, raw)
                yield Line(number, _shown(raw[:200]), f"longer than {LONGEST_LINE >> 20} MiB")
                continue
            yield decoded(number, raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw)
    advance(untold)


def decoded(number: int, raw: bytes) -> Line:
    raw = raw.removesuffix(b"\n").removesuffix(b"\r") if raw.endswith(b"\n") else raw
    try:
        return Line(number, raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        byte, column = raw[error.start], len(raw[: error.start].decode("utf-8")) + 1
        return Line(number, _shown(raw), f"not UTF-8 (byte 0x{byte:02x} at character {column})")


def _skip_line(file: BinaryIO, raw: bytes) -> int:
    skipped = 0
    while raw and not raw.endswith(b"\n"):
        raw = file.readline(1 << 20)
        skipped += len(raw)
    return skipped


def _shown(raw: bytes) -> str:
    return raw.decode("utf-8", errors="backslashreplace")
