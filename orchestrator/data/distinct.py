"""Which values a column of a stored split holds. Read by columns and batches: 10 million rows take seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.layout import split_file

Values = tuple[str, ...]


def distinct(folder: Path, split: str, fields: Sequence[str]) -> dict[Values, int]:
    """Every combination of values of `fields`, with the number of the first row that holds it (from 1).

    Raises `store.DAMAGE` on a damaged file.
    """
    found: dict[Values, int] = {}
    before = 0
    with pa.memory_map(str(split_file(folder, split))) as source, pa.ipc.open_file(source) as file:
        for number in range(file.num_record_batches):
            batch = file.get_batch(number)
            for values, row in _in_batch([batch.column(name) for name in fields]).items():
                found.setdefault(values, before + row)
            before += batch.num_rows
    return found


def _in_batch(columns: list[pa.Array]) -> dict[Values, int]:
    if len(columns) == 1:
        return {(value,): pc.index(columns[0], value).as_py() + 1 for value in columns[0].unique().to_pylist()}
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
    found: dict[Values, int] = {}
    for row, values in enumerate(rows, start=1):
        found.setdefault(values, row)
    return found
