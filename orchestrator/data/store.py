"""A dataset version on disk: one Arrow file a split, all columns text; and the digest over all rows.

<split>.arrow    Arrow IPC file, one string column a field
version.json     {format, digest, fields, splits}
bad_rows.jsonl   rows that --skip-bad set aside: {file, line, reason, raw}
manifest.json    the hash of every file, see `orchestrator.manifest`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from orchestrator.data.layout import FORMAT, split_file

#: What reading a damaged Arrow file may raise.
DAMAGE: tuple[type[Exception], ...] = (pa.ArrowException, OSError, ValueError)
_BATCH_ROWS = 4096
#: A batch is also written when it holds this many characters: Arrow's string columns end at 2 GiB.
_BATCH_CHARACTERS = 1 << 23
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class SplitWriter:
    """Writes one split in batches and digests its rows on the way; memory does not grow with the rows."""

    def __init__(self, path: Path, fields: Sequence[str]) -> None:
        self._schema = pa.schema([pa.field(name, pa.string(), nullable=False) for name in fields])
        self._file = pa.ipc.new_file(str(path), self._schema)
        self._pending: list[Sequence[str]] = []
        self._characters = 0
        self._digest = hashlib.sha256()
        self.rows = 0

    def add(self, values: Sequence[str]) -> None:
        self._pending.append(values)
        encoded = _encode(values)
        self._digest.update(encoded.encode())
        self._digest.update(b"\n")
        self._characters += len(encoded)
        self.rows += 1
        if len(self._pending) >= _BATCH_ROWS or self._characters >= _BATCH_CHARACTERS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    def _flush(self) -> None:
        if self._pending:
            columns = [pa.array(column, pa.string()) for column in zip(*self._pending, strict=True)]
            self._file.write_batch(pa.record_batch(columns, schema=self._schema))
            self._pending.clear()
            self._characters = 0


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
    """The digest of what lies in the folder, read again row by row. Raises pyarrow's errors on a damaged file."""
    parts = []
    for split in splits:
        total, rows = hashlib.sha256(), 0
        for values in read_rows(folder, split):
            total.update(_encode(values).encode() + b"\n")
            rows += 1
        parts.append((split, rows, total.hexdigest()))
    return dataset_digest(fields, parts)
