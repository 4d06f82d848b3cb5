"""What the verbs print: tables and JSON on stdout, notes and progress on stderr, colour on a terminal only."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.table import Table

#: What a cell shows on a terminal: its words, and the style for that word.
STYLES = {
    "succeeded": "green",
    "running": "cyan",
    "starting": "cyan",
    "stopping": "yellow",
    "failed": "red",
    "cancelled": "yellow",
    "queued": "dim",
    "free": "green",
    "external": "magenta",
    "quarantined": "red",
    "reserved": "blue",
}


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """Print rows under their columns; columns that are empty throughout are left out. `right`: columns of numbers."""
    names, cells = used(columns, rows)
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(rich_table(names, cells, right=right))
    else:
        sys.stdout.write("\n".join(plain_lines(names, cells, right=right)) + "\n")


def is_narrow() -> bool:
    """Whether standard output is a terminal of fewer than 100 columns."""
    return sys.stdout.isatty() and shutil.get_terminal_size().columns < 100


def print_json(value: Any) -> None:
    """JSON on stdout. Numbers that JSON does not know (NaN, infinities) become null."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False)
    sys.stdout.write(text + "\n")


def say(text: str = "") -> None:
    """A line of the result, on stdout."""
    sys.stdout.write(text + "\n")


def write(text: str) -> None:
    """A part of the result as it is, on stdout, at once: a pipe's reader may wait for it."""
    sys.stdout.write(text)
    sys.stdout.flush()


def note(text: str) -> None:
    """A message beside the result, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class Advance(Protocol):
    def __call__(self, done: int, total: int | None, text: str = "") -> None: ...


@contextmanager
def progress(title: str) -> Iterator[Advance]:
    """A bar on stderr on a terminal; elsewhere a line at the start and one each time the text changes."""
    if sys.stderr.isatty():
        yield from _bar(title)
        return
    last = title
    note(title)

    def advance(done: int, total: int | None, text: str = "") -> None:
        nonlocal last
        if text and text != last:
            last = text
            note(f"{title}: {text}")

    yield advance


def used(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> tuple[list[str], list[list[object]]]:
    """Without the columns that are empty throughout."""
    keep = [i for i in range(len(columns)) if not rows or any(_text(row[i]) for row in rows)]
    return [columns[i] for i in keep], [[row[i] for i in keep] for row in rows]


def rich_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(_text(cell), style=STYLES.get(_text(cell), "")) for cell in row))
    return made


def plain_lines(columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> list[str]:
    """Aligned text: columns are two spaces apart, and one row is one line."""
    grid = [[name.upper() for name in columns], *([_one_line(_text(cell)) for cell in row] for row in rows)]
    widths = [max(width(line[i]) for line in grid) for i in range(len(columns))]
    flush_right = [name in right for name in columns]
    return ["  ".join(_pad(*part) for part in zip(line, widths, flush_right, strict=True)).rstrip() for line in grid]


def width(text: str) -> int:
    """Columns on a terminal: Chinese characters take two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def number(value: object) -> str:
    """A metric for people: four significant digits."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float | None) -> str:
    """`12s`, `3m 20s`, `2h 05m`, `3d 04h`."""
    if seconds is None:
        return ""
    whole = int(max(0.0, seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def _bar(title: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    parts = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*parts, TextColumn("{task.fields[text]}"), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, text="")

        def advance(done: int, total: int | None, text: str = "") -> None:
            bar.update(task, completed=done, total=total, text=text)

        yield advance


def _text(cell: object) -> str:
    return "" if cell is None else number(cell) if isinstance(cell, float) else str(cell)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _pad(text: str, wanted: int, right: bool) -> str:
    space = " " * (wanted - width(text))
    return space + text if right else text + space


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0.0 else None
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value
