"""CSV (RFC 4180 quoting), TSV and any other delimiter (no quoting), and plain text (one row a line)."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from io import StringIO
from itertools import chain
from pathlib import Path

from orchestrator.data.columns import Columns
from orchestrator.data.lines import LONGEST_LINE, Block, Line, blocks, numbered_lines
from orchestrator.data.rows import Advance, Fault, ReadOptions, Record
from orchestrator.errors import BadInput


def read_text(path: Path, advance: Advance) -> Iterator[Record | Fault]:
    """One row a line, in the field `text`. Blank lines are no rows."""
    for line in numbered_lines(path, advance):
        if line.fault:
            yield _fault(path, line)
        elif line.text.strip():
            yield Record(line.number, ("text",), (line.text,), line.text)


def read_delimited(
    path: Path, options: ReadOptions, delimiter: str, advance: Advance
) -> Iterator[Columns | Record | Fault]:
    """Each line split at `delimiter`; quotes mean nothing."""
    names = _given_names(path, options)
    header = options.has_header
    blank: list[Line] = []  # lines that are bad rows if a row follows, and none at the end
    for block in blocks(path, advance):
        columns = None if header else _split(path, block, delimiter, names, options)
        if columns is not None:
            yield from _rows(path, blank, delimiter, names, options)
            blank.clear()
            yield columns
            continue
        for line in _rows_begun(blank, block.lines()):
            if not header:
                yield from _rows(path, [line], delimiter, names, options)
            elif line.fault:
                yield _fault(path, line, fatal=True)
                return
            else:
                names = options.columns or _names(path, line.number, line.text.split(delimiter))
                header = False


def _rows(
    path: Path, lines: Iterable[Line], delimiter: str, names: Sequence[str], options: ReadOptions
) -> Iterator[Record | Fault]:
    for line in lines:
        values = line.text.split(delimiter, len(names) - 1 if options.split_first else -1)
        if line.fault:
            yield _fault(path, line)
        elif len(values) == len(names):
            yield Record(line.number, tuple(names), values, line.text)
        else:
            yield Fault(str(path), line.number, _wrong_count(len(values), names), line.text)


def _split(path: Path, block: Block, delimiter: str, names: Sequence[str], options: ReadOptions) -> Columns | None:
    """All lines of the block; None where one has other columns, or may be a blank one."""
    text = _text_of(block)
    if text is None or len(names) < 2 or not delimiter.strip(" \r"):
        return None
    most = len(names) - 1 if options.split_first else -1
    values = [line.split(delimiter, most) for line in text.split("\n")]
    if set(map(len, values)) != {len(names)}:
        return None

    def rows() -> Iterator[Record | Fault]:
        return _rows(path, block.lines(), delimiter, names, options)

    return Columns(tuple(names), list(zip(*values, strict=True)), len(values), rows)


def _text_of(block: Block) -> str | None:
    """Lines that end with LF alone; None where there is anything amiss."""
    if block.odd or block.data.count(b"\r") != block.data.count(b"\r\n"):
        return None
    try:
        return block.data.decode().removesuffix("\n").removesuffix("\r").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return None


def read_csv(path: Path, options: ReadOptions, advance: Advance) -> Iterator[Columns | Record | Fault]:
    """RFC 4180: values with the delimiter, quotes or line ends stand in quotes; a quote in them is doubled.

    Block by block, as long as each block ends with a row's end; from the first oddity on, row by row.
    """
    names = _given_names(path, options)
    source = blocks(path, advance)
    delimiter = options.delimiter or ","
    first = next(source, None)
    if first is None:
        return
    if options.has_header:
        head, _, rest = first.data.partition(b"\n")
        if b'"' in head or b"\r" in head.removesuffix(b"\r") or first.fault or not rest or not _is_utf8(head):
            yield from _slow_csv(path, _all_lines(first, source), delimiter, options)
            return
        found = head.decode().removesuffix("\r").split(delimiter)
        names, first = options.columns or _names(path, 1, found), Block(2, rest)
    for block in chain([first], source):
        columns = _csv_columns(path, block, delimiter, names)
        if columns is None:
            yield from _slow_csv(path, _all_lines(block, source), delimiter, options, names)
            return
        yield columns


def _csv_columns(path: Path, block: Block, delimiter: str, names: tuple[str, ...]) -> Columns | None:
    text = _text_of(block)
    if text is None:
        return None
    csv.field_size_limit(LONGEST_LINE)
    try:
        values = list(csv.reader(StringIO(f"{text}\n", newline="\n"), delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    if set(map(len, values)) != {len(names)}:
        return None

    def rows() -> Iterator[Record | Fault]:
        return _slow_csv(path, block.lines(), delimiter, ReadOptions(header=False), names)

    return Columns(names, list(zip(*values, strict=True)), len(values), rows)


def _all_lines(block: Block, source: Iterator[Block]) -> Iterator[Line]:
    for one in chain([block], source):
        yield from one.lines()


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _slow_csv(
    path: Path, lines: Iterator[Line], delimiter: str, options: ReadOptions, names: tuple[str, ...] = ()
) -> Iterator[Record | Fault]:
    header = options.has_header and not names
    names = names or options.columns
    for start, values, raw, fault in _csv_rows(path, lines, delimiter):
        if fault:
            yield replace(fault, fatal=fault.fatal or header)
            if header or fault.fatal:
                return
        elif header:
            names = options.columns or _names(path, start, values)
            header = False
        elif len(values) == len(names):
            yield Record(start, names, values, raw)
        else:
            yield Fault(str(path), start, _wrong_count(len(values), names), raw)


def _given_names(path: Path, options: ReadOptions) -> tuple[str, ...]:
    if not options.columns and not options.has_header:
        raise BadInput("columns without names", where=str(path), hint="name them: `--columns source,target`")
    return options.columns


class _Feed:
    """Hands lines to the csv module and remembers which ones the current row took."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = _rows_begun([], lines)
        self.taken: list[Line] = []

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.taken.append(line)
            yield line.text + "\n"


def _csv_rows(path: Path, lines: Iterator[Line], delimiter: str) -> Iterator[tuple[int, list[str], str, Fault | None]]:
    """(first line, values, raw text, fault) of every row."""
    feed = _Feed(lines)
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        feed.taken.clear()
        values: list[str] = []
        trouble = ""
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            trouble = str(error)
        start = feed.taken[0].number
        raw = "\n".join(line.text for line in feed.taken)
        bad = next((line for line in feed.taken if line.fault), None)
        fault = _not_csv(path, feed.taken, trouble, raw) if trouble else None
        if bad and not (fault and fault.fatal):
            fault = Fault(str(path), bad.number, str(bad.fault), raw)
        yield start, values, raw, fault


def _not_csv(path: Path, taken: Sequence[Line], trouble: str, raw: str) -> Fault:
    first, last = taken[0].number, taken[-1].number
    if trouble == "unexpected end of data" or trouble.startswith("field larger"):
        return Fault(str(path), first, f"the quote opened here is not closed (read up to line {last})", raw, fatal=True)
    if last > first:
        # A stray quote swallows good rows up to the next one: they must not be set aside as one bad row.
        reason = f"not CSV ({trouble}; a quote opened here runs on to line {last})"
        return Fault(str(path), first, reason, raw, fatal=True)
    return Fault(str(path), first, f"not CSV ({trouble})", raw)


def _names(path: Path, line: int, names: Sequence[str]) -> tuple[str, ...]:
    cleaned = tuple(name.strip() for name in names)
    if not cleaned or not all(cleaned) or len(set(cleaned)) != len(cleaned):
        raise BadInput(
            f"the first line must name the columns, each once and none empty; it holds {', '.join(map(repr, cleaned))}",
            where=f"{path}:{line}",
            hint="if the file has no header, name its columns: `--columns source,target`",
        )
    return cleaned


def _wrong_count(found: int, names: Sequence[str]) -> str:
    if found == 1 and len(names) > 1:
        return f"1 column where {len(names)} are expected ({', '.join(names)}): no delimiter in this line"
    return f"{found} columns where {len(names)} are expected ({', '.join(names)})"


def _rows_begun(blank: list[Line], lines: Iterator[Line]) -> Iterator[Line]:
    """Blank lines at the end of a file are no rows; a blank line before a row is one, and a bad one. `blank` keeps
    those that wait for it."""
    for line in lines:
        if not line.fault and not line.text.strip(" \r"):
            blank.append(line)
            continue
        yield from blank
        blank.clear()
        yield line


def _fault(path: Path, line: Line, *, fatal: bool = False) -> Fault:
    return Fault(str(path), line.number, str(line.fault), line.text, fatal=fatal)
