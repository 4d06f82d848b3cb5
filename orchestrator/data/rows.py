"""What a reader yields, how it is told to read, and the one text form of every value."""

from __future__ import annotations

import datetime
import decimal
import json
import math
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


def text_of(value: Any) -> str:
    """The canonical text of a value, so that the same row from CSV, JSON and Parquet is the same row.

    Strings as they are; true, false; integers in decimal digits; floats as their shortest exact form (0.1, 100000.0);
    dates and times in ISO 8601; anything nested as JSON with sorted keys and no spaces. Raises ValueError.
    """
    if isinstance(value, str):
        return _checked(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | decimal.Decimal):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"is {value!r}, which is not a number")
        return repr(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return _decoded(value)
    return _nested(value)


def _nested(value: Any) -> str:
    try:
        dumped = json.dumps(
            value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False, default=text_of
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError("holds a nested value that JSON cannot express") from error
    return _checked(dumped)


def _decoded(value: bytes) -> str:
    try:
        return _checked(value.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError("is bytes that are not UTF-8") from error


def _checked(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL character")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can write half a character: "\ud83d"
            raise ValueError("holds half a character (a lone surrogate)") from error
    return text
