"""Parquet, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data.columns import Columns
from orchestrator.data.rows import Advance, Fault, Record

_BATCH = 4096


def read_parquet(path: Path, advance: Advance) -> Iterator[Columns | Record | Fault]:
    """Every row; a row's `line` is its number, from 1."""
    line = 0
    try:
        with pq.ParquetFile(path) as file:
            names = tuple(file.schema_arrow.names)
            size_of_row = path.stat().st_size / max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=_BATCH):
                yield Columns(names, batch.columns, batch.num_rows, partial(_rows, path, names, batch, line))
                line += batch.num_rows
                advance(int(size_of_row * batch.num_rows))
    except (pa.ArrowException, OSError) as error:
        yield Fault(str(path), line + 1, f"not readable as Parquet ({str(error).splitlines()[0]})", fatal=True)


def _rows(path: Path, names: tuple[str, ...], batch: pa.RecordBatch, before: int) -> Iterator[Record | Fault]:
    try:
        columns = [column.to_pylist() for column in batch.columns]
    except (ValueError, pa.ArrowException):  # e.g. a string column that does not hold UTF-8
        for index in range(batch.num_rows):
            yield _single(path, names, batch, index, before)
        return
    for index, values in enumerate(zip(*columns, strict=True)):
        yield Record(before + index + 1, names, values, "")


def _single(path: Path, names: tuple[str, ...], batch: pa.RecordBatch, index: int, before: int) -> Record | Fault:
    values: list[Any] = []
    for name, column in zip(names, batch.columns, strict=True):
        try:
            values.append(column[index].as_py())
        except (ValueError, pa.ArrowException):
            return Fault(str(path), before + index + 1, f"the field {name!r} is not readable (not UTF-8?)")
    return Record(before + index + 1, names, values, "")
