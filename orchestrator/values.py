"""The one text form of every value, in datasets and wherever else rows are read."""

from __future__ import annotations

import datetime
import decimal
import json
import math
from typing import Any


def field_text(value: Any) -> str:
    """Of a field that may be null, which is no text at all. Raises ValueError."""
    return "" if value is None else text_of(value)


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
