"""What is in a dataset version, counted while its rows are written: lengths, values, repetitions, leaks.

{"characters": {field: {mean, most}}, "values": {field: {split: {value: rows}}}, "duplicates": {split: rows},
 "shared": [{"split", "with", "rows"}]}

`values` holds the fields with few different values, which is what labels are. `shared` says how many rows of a split
stand in an earlier split too: a leak, when one is trained on and the other tested. Memory does not grow with the rows.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_MOST_VALUES = 50
_LONGEST_VALUE = 100
_BUCKETS = 64
#: Rows that are remembered in memory, 16 bytes each; more go to a file.
_IN_MEMORY = 1 << 20


class Statistics:
    """Told every row once, in order."""

    def __init__(self, folder: Path) -> None:
        self._repeats = _Repeats(folder)
        self._splits: list[str] = []
        self._rows: list[int] = []
        self._characters: list[int] = []
        self._most: list[int] = []
        #: By field, then by split; None: too many different values.
        self._values: list[list[Counter[str]] | None] = []

    def add_batch(self, split: str, batch: pa.RecordBatch, encoded: pa.Array) -> None:
        """`encoded`: of `store.encoded_rows`; equal rows have equal texts there."""
        if split not in self._splits:
            self._begin(split, batch.num_columns)
        number = self._splits.index(split)
        self._rows[number] += batch.num_rows
        self._repeats.add(np.fromiter(map(hash, encoded.to_pylist()), np.int64, batch.num_rows), number)
        for place, column in enumerate(batch.columns):
            lengths = pc.utf8_length(column)
            most = pc.max(lengths).as_py()
            self._characters[place] += pc.sum(lengths).as_py()
            self._most[place] = max(self._most[place], most)
            counted = self._values[place]
            if counted is not None and (most > _LONGEST_VALUE or not _counted_in(counted[number], column)):
                self._values[place] = None

    def result(self, fields: Sequence[str]) -> dict[str, Any]:
        duplicates, shared = self._repeats.count()
        rows = max(1, sum(self._rows))
        return {
            "characters": {
                field: {"mean": round(total / rows, 1), "most": most}
                for field, total, most in zip(fields, self._characters, self._most, strict=True)
            },
            "values": {
                field: {split: dict(count.most_common()) for split, count in zip(self._splits, counted, strict=True)}
                for field, counted in zip(fields, self._values, strict=True)
                if counted is not None
            },
            "duplicates": {self._splits[split]: count for split, count in sorted(duplicates.items())},
            "shared": [
                {"split": self._splits[later], "with": self._splits[earlier], "rows": count}
                for (earlier, later), count in sorted(shared.items())
            ],
        }

    def close(self) -> None:
        self._repeats.close()

    def _begin(self, split: str, fields: int) -> None:
        if not self._splits:
            self._characters, self._most = [0] * fields, [0] * fields
            self._values = [[] for _ in range(fields)]
        self._splits.append(split)
        self._rows.append(0)
        for counted in self._values:
            if counted is not None:
                counted.append(Counter())


def _counted_in(counter: Counter[str], column: pa.Array) -> bool:
    """False when there are too many different values."""
    found = pc.value_counts(column)
    if len(found) <= _MOST_VALUES:
        counter.update(dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True)))
    return len(found) <= _MOST_VALUES and len(counter) <= _MOST_VALUES


class _Repeats:
    """Finds rows that stand more than once, by 64-bit hash: the odds that ten million rows hold one false repetition
    are 3 in a million. Hashes are dealt out to buckets; a full memory is emptied into a file a bucket.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries: list[np.ndarray] = []  # [rows, 2]: hash, split
        self._files: list[BinaryIO] = []
        self._held = 0

    def add(self, keys: np.ndarray, split: int) -> None:
        self._entries.append(np.stack([keys, np.full_like(keys, split)], axis=1))
        self._held += len(keys)
        if self._held >= _IN_MEMORY:
            self._spill()

    def count(self) -> tuple[Counter[int], Counter[tuple[int, int]]]:
        """(repetitions within a split by split, rows of a later split that an earlier one has, by both)."""
        duplicates: Counter[int] = Counter()
        shared: Counter[tuple[int, int]] = Counter()
        if self._files:
            self._spill()
        for entries in map(_read, self._files) if self._files else [self._taken()]:
            for (earlier, later), count in _pairs(entries).items():
                if earlier == later:
                    duplicates[later] += count
                else:
                    shared[earlier, later] += count
        return duplicates, shared

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _taken(self) -> np.ndarray:
        taken, self._entries, self._held = self._entries, [], 0
        return np.concatenate(taken) if taken else np.zeros((0, 2), np.int64)

    def _spill(self) -> None:
        if not self._files:
            self._files = [tempfile.TemporaryFile(dir=self._folder) for _ in range(_BUCKETS)]  # noqa: SIM115 - `close`
        entries = self._taken()
        buckets = entries[:, 0] & (_BUCKETS - 1)
        for number, file in enumerate(self._files):
            file.write(entries[buckets == number].tobytes())


def _read(file: BinaryIO) -> np.ndarray:
    file.seek(0)
    return np.frombuffer(file.read(), np.int64).reshape(-1, 2)


def _pairs(entries: np.ndarray) -> Counter[tuple[int, int]]:
    """(split of a key's first entry, split of a later one) -> how many later ones."""
    if not len(entries):
        return Counter()
    keys, splits = entries[np.argsort(entries[:, 0], kind="stable")].T
    new = np.concatenate([[True], keys[1:] != keys[:-1]])
    first = splits[np.flatnonzero(new)[np.cumsum(new) - 1]]
    pairs, counts = np.unique(np.stack([first[~new], splits[~new]]), axis=1, return_counts=True)
    return Counter({(int(a), int(b)): int(count) for (a, b), count in zip(pairs.T, counts, strict=True)})
