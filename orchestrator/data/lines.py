"""A file's lines with their numbers, and many of them at once. Lines end with LF or CRLF, nothing else (no U+2028, no
lone CR)."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from orchestrator.data.rows import Advance

#: A longer line is no row of text but another kind of file; it is reported and never held in memory.
LONGEST_LINE = 1 << 24
#: Read at a time: what is done once for a block costs nothing, and a block's rows are small beside the program.
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Line:
    number: int  #: from 1
    text: str  #: without its end; where `fault` is set, for display only
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines."""

    number: int  #: of its first line
    data: bytes
    fault: str | None = None  #: of its only line, whose beginning `data` is

    @property
    def odd(self) -> bool:
        """Whether one of its lines is known to be at fault."""
        return self.fault is not None or len(self.data) > LONGEST_LINE

    def lines(self) -> Iterator[Line]:
        if self.fault:
            yield Line(self.number, _shown(self.data), self.fault)
            return
        for number, raw in enumerate(self.data.splitlines(keepends=True) if _plain(self.data) else _split(self.data)):
            if len(raw) > LONGEST_LINE:
                yield Line(self.number + number, _shown(raw[:200]), _TOO_LONG)
            else:
                yield decoded(self.number + number, raw)


def numbered_lines(path: Path, advance: Advance) -> Iterator[Line]:
    """Every line of a UTF-8 file (a byte order mark is accepted)."""
    for block in blocks(path, advance):
        yield from block.lines()


def blocks(path: Path, advance: Advance) -> Iterator[Block]:
    """All lines of the file, about a megabyte at a time, without a byte order mark."""
    number, rest = 1, b""
    with path.open("rb") as file:
        while chunk := file.read(BLOCK):
            advance(len(chunk))
            if number == 1 and not rest:
                chunk = chunk.removeprefix(codecs.BOM_UTF8)
            data = rest + chunk
            end = data.rfind(b"\n") + 1
            rest = data[end:]
            if end:
                yield Block(number, data[:end])
                number += data.count(b"\n", 0, end)
            if len(rest) > LONGEST_LINE:
                yield Block(number, rest[:200], _TOO_LONG)
                number, rest = number + 1, _after_line(file, advance)
    if rest:
        yield Block(number, rest)


def decoded(number: int, raw: bytes) -> Line:
    raw = raw.removesuffix(b"\n").removesuffix(b"\r") if raw.endswith(b"\n") else raw
    try:
        return Line(number, raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        byte, column = raw[error.start], len(raw[: error.start].decode("utf-8")) + 1
        return Line(number, _shown(raw), f"not UTF-8 (byte 0x{byte:02x} at character {column})")


_TOO_LONG = f"longer than {LONGEST_LINE >> 20} MiB"


def _split(data: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        yield data[start:end]
        start = end


def _plain(data: bytes) -> bool:
    """Whether bytes.splitlines, which is faster, splits at LF and CRLF alone."""
    return data.count(b"\r") == data.count(b"\r\n")


def _after_line(file: BinaryIO, advance: Advance) -> bytes:
    """Skip to the end of the line; what was read of the next ones."""
    while chunk := file.read(BLOCK):
        advance(len(chunk))
        end = chunk.find(b"\n") + 1
        if end:
            return chunk[end:]
    return b""


def _shown(raw: bytes) -> str:
    return raw.decode("utf-8", errors="backslashreplace")
