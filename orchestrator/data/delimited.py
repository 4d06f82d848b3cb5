"""CSV (RFC 4180 quoting), TSV and any other delimiter (no quoting), and plain text (one row a line)."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.data.lines import LONGEST_LINE, Line, numbered_lines
from orchestrator.data.rows import Advance, Fault, ReadOptions, Record
from orchestrator.errors import BadInput


def read_text(path: Path, advance: Advance) -> Iterator[Record | Fault]:
    """One row a line, in the field `text`. Blank lines are no rows."""
    for line in numbered_lines(path, advance):
        if line.fault:
            yield _fault(path, line)
        elif line.text.strip():
            yield Record(line.number, ("text",), (line.text,), line.text)


def read_delimited(path: Path, options: ReadOptions, delimiter: str, advance: Advance) -> Iterator[Record | Fault]:
    """Each line split at `delimiter`; quotes mean nothing."""
    if not options.columns and not options.has_header:
        raise BadInput("columns without names", where=str(path), hint="name them: `--columns source,target`")
    names = options.columns
    header = options.has_header
    for line in _without_blank_end(numbered_lines(path, advance)):
        if line.fault:
            yield _fault(path, line, fatal=header)
            if header:
                return
        elif header:
            names = options.columns or _names(path, line.number, line.text.split(delimiter))
            header = False
        else:
            values = line.text.split(delimiter, len(names) - 1 if options.split_first else -1)
            if len(values) == len(names):
                yield Record(line.number, names, values, line.text)
            else:
                yield Fault(str(path), line.number, _wrong_count(len(values), names), line.text)


def read_csv(path: Path, options: ReadOptions, advance: Advance) -> Iterator[Record | Fault]:
    """RFC 4180: values with the delimiter, quotes or line ends stand in quotes; a quote in them is doubled."""
    if not options.columns and not options.has_header:
        raise BadInput("columns without names", where=str(path), hint="name them: `--columns source,target`")
    names = options.columns
    header = options.has_header
    for start, values, raw, fault in _csv_rows(path, options.delimiter or ",", advance):
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


class _Feed:
    """Hands lines to the csv module and remembers which ones the current row took."""

    def __init__(self, path: Path, advance: Advance) -> None:
        self._lines = _without_blank_end(numbered_lines(path, advance))
        self.taken: list[Line] = []

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.taken.append(line)
            yield line.text + "\n"


def _csv_rows(path: Path, delimiter: str, advance: Advance) -> Iterator[tuple[int, list[str], str, Fault | None]]:
    """(first line, values, raw text, fault) of every row."""
    feed = _Feed(path, advance)
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


def _without_blank_end(lines: Iterator[Line]) -> Iterator[Line]:
    """Blank lines at the end of a file are no rows; a blank line before a row is one, and a bad one."""
    blank: list[Line] = []
    for line in lines:
        if not line.fault and not line.text.strip(" \r"):
            blank.append(line)
            continue
        yield from blank
        blank.clear()
        yield line


def _fault(path: Path, line: Line, *, fatal: bool = False) -> Fault:
    return Fault(str(path), line.number, str(line.fault), line.text, fatal=fatal)
