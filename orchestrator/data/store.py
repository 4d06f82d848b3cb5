"""A dataset version on disk (`layout` names its files): all columns text; and the digest over all rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.columns import Pending, buffers, schema_of
from orchestrator.data.layout import FORMAT, split_file

#: What reading a damaged Arrow file may raise.
DAMAGE: tuple[type[Exception], ...] = (pa.ArrowException, OSError, ValueError)
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class SplitWriter:
    """Writes one split in batches and digests its rows on the way; memory does not grow with the rows."""

    def __init__(self, path: Path, fields: Sequence[str]) -> None:
        self._fields = tuple(fields)
        self._file = pa.ipc.new_file(str(path), schema_of(fields))
        self._pending = Pending()
        self._digest = hashlib.sha256()
        self.rows = 0

    def add(self, values: Sequence[str]) -> None:
        self._pending.add(values)
        if self._pending.full:
            self._flush()

    def add_batch(self, batch: pa.RecordBatch, encoded: pa.Array | None = None) -> None:
        """`encoded`: of `encoded_rows`, where it is there already."""
        _, data = buffers(encoded_rows(batch) if encoded is None else encoded)
        self._digest.update(data.data)
        self._file.write_batch(batch)
        self.rows += batch.num_rows

    def close(self) -> None:
        self._flush()
        self._file.close()

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    def _flush(self) -> None:
        for batch in self._pending.flush(self._fields):
            self.add_batch(batch)


def encoded_rows(batch: pa.RecordBatch) -> pa.Array:
    """Each row as the digest takes it: a JSON array of its texts and a line feed, as `json.dumps` writes it without
    spaces and with ensure_ascii=False."""
    parts: list[Any] = ['["']
    for column in batch.columns:
        parts += [_escaped(column), '","']
    parts[-1] = '"]\n'
    return pc.binary_join_element_wise(*parts, "")


def _escaped(column: pa.Array) -> pa.Array:
    present = set(buffers(column)[1].tobytes().translate(None, _AS_THEY_ARE))
    for byte in sorted(present, reverse=True):  # the backslash first: the others bring it
        column = pc.replace_substring(column, chr(byte), _encode(chr(byte))[1:-1])
    return column


def dataset_digest(fields: Sequence[str], splits: Iterable[tuple[str, int, str]]) -> str:
    """The digest of a whole dataset from (name, rows, sha256 of its rows) of each split, in any order.

    A split's sha256 is over its rows in order, each a JSON array of its texts in the order of `fields` (UTF-8, no
    spaces, nothing escaped but what JSON demands) and a line feed. So it depends on names, rows and their order alone:
    not on the file format they came from.
    """
    facts = {"format": FORMAT, "fields": list(fields), "splits": sorted(list(split) for split in splits)}
    return "sha256:" + hashlib.sha256(_encode(facts).encode()).hexdigest()


def read_rows(folder: Path, split: str) -> Iterator[tuple[str, ...]]:
    """Every row of a split, in order; the file is mapped, not loaded."""
    with pa.memory_map(str(split_file(folder, split))) as source, pa.ipc.open_file(source) as file:
        for number in range(file.num_record_batches):
            batch = file.get_batch(number)
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def read_columns(folder: Path, split: str, fields: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """As `read_rows`, of some fields only, in the order asked for."""
    with pa.memory_map(str(split_file(folder, split))) as source, pa.ipc.open_file(source) as file:
        for number in range(file.num_record_batches):
            batch = file.get_batch(number)
            yield from zip(*(batch.column(name).to_pylist() for name in fields), strict=True)


def digest_of(folder: Path, fields: Sequence[str], splits: Iterable[str]) -> str:
    """The digest of what lies in the folder, all of it read again. Raises pyarrow's errors on a damaged file."""
    parts = []
    for split in splits:
        total, rows = hashlib.sha256(), 0
        for batch in read_batches(folder, split):
            batch.validate(full=True)  # of a bundle it is somebody else's
            total.update(buffers(encoded_rows(batch))[1].data)
            rows += batch.num_rows
        parts.append((split, rows, total.hexdigest()))
    return dataset_digest(fields, parts)


def count_rows(folder: Path, split: str) -> int:
    return sum(batch.num_rows for batch in read_batches(folder, split))


def read_batches(folder: Path, split: str) -> Iterator[pa.RecordBatch]:
    """Every row of a split, in order, as it lies in the file: mapped, not loaded."""
    with pa.memory_map(str(split_file(folder, split))) as source, pa.ipc.open_file(source) as file:
        for number in range(file.num_record_batches):
            yield file.get_batch(number)


#: Bytes that stand in a JSON text as they are.
_AS_THEY_ARE = bytes(byte for byte in range(256) if byte >= 32 and byte not in b'"\\')
