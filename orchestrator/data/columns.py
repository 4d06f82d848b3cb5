"""Many rows at once, column by column: ten times as fast as row by row, and never otherwise.

What reads a file yields a `Columns` where it can; who takes it may find that a row in it needs a closer look (a fault,
a value that is missing), and then goes through its rows one by one. So every fault is found, and told, in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.data.rows import Fault, Record
from orchestrator.values import text_of


@dataclass(frozen=True)
class Columns:
    names: tuple[str, ...]
    values: Sequence[Sequence[Any] | pa.Array]  #: of each name; of every row
    count: int
    rows: Callable[[], Iterator[Record | Fault]]  #: the same, one by one


def texts(values: Sequence[Any] | pa.Array, *, required: bool) -> pa.Array | None:
    """A column as texts; None: some value has to be looked at."""
    try:
        column = _as_strings(values)
    except (ValueError, TypeError, pa.ArrowException):
        return None
    if column.null_count:
        if required:
            return None
        column = column.fill_null("")
    offsets, data = buffers(column)
    if (data == 0).any():
        return None
    return None if required and _has_blank(column, offsets, data) else column


def buffers(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """[rows + 1] where each text begins and ends, and the bytes of all of them; of a column without nulls."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    raw = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return ends - ends[0], raw[ends[0] : ends[-1]]


def _as_strings(values: Sequence[Any] | pa.Array) -> pa.Array:
    if isinstance(values, pa.Array):
        if pa.types.is_large_string(values.type) or pa.types.is_integer(values.type):
            values = values.cast(pa.string())
        if pa.types.is_string(values.type):
            values.validate(full=True)  # Parquet may hold what is not UTF-8
            return values
        values = [None if value is None else text_of(value) for value in values.to_pylist()]
    try:
        return pa.array(values, pa.string())
    except TypeError:  # not all are texts
        return pa.array([None if value is None else text_of(value) for value in values], pa.string())


def _has_blank(column: pa.Array, offsets: np.ndarray, data: np.ndarray) -> bool:
    """Whether a text is empty or white space alone. Most begin with an ASCII letter and need no second look."""
    if (offsets[1:] == offsets[:-1]).any():
        return True
    first = data[offsets[:-1]]
    doubtful = np.flatnonzero((first <= 32) | (first >= 127))
    return any(not text.strip() for text in column.take(pa.array(doubtful)).to_pylist())


#: A batch is closed when it holds so many rows or so many characters: Arrow's string columns end at 2 GiB.
BATCH_ROWS, _BATCH_CHARACTERS = 4096, 1 << 23


class Pending:
    """Rows that came one by one, on their way into a batch."""

    def __init__(self) -> None:
        self._rows: list[Sequence[str]] = []
        self._characters = 0

    def add(self, values: Sequence[str]) -> None:
        self._rows.append(values)
        self._characters += sum(map(len, values))

    @property
    def full(self) -> bool:
        return len(self._rows) >= BATCH_ROWS or self._characters >= _BATCH_CHARACTERS

    def flush(self, fields: Sequence[str]) -> Iterator[pa.RecordBatch]:
        if self._rows:
            yield batch_of(fields, [pa.array(column, pa.string()) for column in zip(*self._rows, strict=True)])
            self._rows.clear()
            self._characters = 0


def batch_of(fields: Sequence[str], columns: Sequence[pa.Array]) -> pa.RecordBatch:
    return pa.record_batch(columns, schema=schema_of(fields))


def schema_of(fields: Sequence[str]) -> pa.Schema:
    return pa.schema([pa.field(name, pa.string(), nullable=False) for name in fields])
