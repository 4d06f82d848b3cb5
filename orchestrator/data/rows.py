"""What a reader yields, and how it is told to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

SUPERGLUE = ("superglue-copa", "superglue-multirc", "superglue-record", "superglue-wsc")
FORMATS = ("csv", "tsv", "jsonl", "json", "parquet", "text", "delimited", *SUPERGLUE)

#: Told the bytes read since the last call.
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Record:
    """One row as its file holds it."""

    line: int  #: where it starts, from 1; for Parquet the row's number
    names: tuple[str, ...]
    values: Sequence[Any]
    raw: str  #: for inspection, should the row turn out to be bad


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that cannot be used."""

    file: str
    line: int
    reason: str
    raw: str = ""
    fatal: bool = False  #: nothing after it can be trusted, so it cannot be set aside either

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class ReadOptions:
    format: str | None = None  #: one of FORMATS; None: by the file's suffix
    delimiter: str | None = None
    columns: tuple[str, ...] = ()  #: names for files that carry none (with `header`: instead of the file's own)
    header: bool | None = None  #: whether the first line holds names; None: when `columns` is empty
    split_first: bool = False  #: split at the first len(columns) - 1 delimiters only; the last column takes the rest
    strip: bool = False  #: remove white space at both ends of every value
    keep: tuple[str, ...] = ()  #: keep these fields only, in this order
    required: tuple[str, ...] | None = None  #: fields that must not be empty; None: all
    skip_bad: bool = field(default=False)

    @property
    def has_header(self) -> bool:
        return not self.columns if self.header is None else self.header
