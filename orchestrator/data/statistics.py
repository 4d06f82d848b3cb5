"""What is in a dataset version, counted while its rows are written: lengths, values, repetitions, leaks.

{"characters": {field: {mean, most}}, "values": {field: {split: {value: rows}}}, "duplicates": {split: rows},
 "shared": [{"split", "with", "rows"}]}

`values` holds the fields with few different values, which is what labels are. `shared` says how many rows of a split
stand in an earlier split too: a leak, when one is trained on and the other tested. Memory does not grow with the rows.
"""

from __future__ import annotations

import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

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

    def add(self, split: str, values: tuple[str, ...]) -> None:
        if not self._splits or self._splits[-1] != split:
            self._begin(split, len(values))
        number = self._splits.index(split)
        self._rows[number] += 1
        self._repeats.add(hash(values), number)
        for column, value in enumerate(values):
            length = len(value)
            self._characters[column] += length
            if length > self._most[column]:
                self._most[column] = length
            counted = self._values[column]
            if counted is not None:
                counted[number][value] += 1
                if length > _LONGEST_VALUE or len(counted[number]) > _MOST_VALUES:
                    self._values[column] = None

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
        if split not in self._splits:
            self._splits.append(split)
            self._rows.append(0)
            for counted in self._values:
                if counted is not None:
                    counted.append(Counter())


class _Repeats:
    """Finds rows that stand more than once, by 64-bit hash: the odds that ten million rows hold one false repetition
    are 3 in a million. Hashes are dealt out to buckets; a full memory is emptied into a file a bucket.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buckets = [array("q") for _ in range(_BUCKETS)]
        self._files: list[BinaryIO] = []
        self._held = 0

    def add(self, key: int, split: int) -> None:
        bucket = self._buckets[key & (_BUCKETS - 1)]
        bucket.append(key)
        bucket.append(split)
        self._held += 1
        if self._held >= _IN_MEMORY:
            self._spill()

    def count(self) -> tuple[Counter[int], Counter[tuple[int, int]]]:
        """(repetitions within a split by split, rows of a later split that an earlier one has, by both)."""
        duplicates: Counter[int] = Counter()
        shared: Counter[tuple[int, int]] = Counter()
        for number in range(_BUCKETS):
            first: dict[int, int] = {}
            entries = self._entries(number)
            for key, split in zip(entries, entries, strict=True):
                earlier = first.get(key)
                if earlier is None:
                    first[key] = split
                elif earlier == split:
                    duplicates[split] += 1
                else:
                    shared[earlier, split] += 1
        return duplicates, shared

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _spill(self) -> None:
        if not self._files:
            self._files = [tempfile.TemporaryFile(dir=self._folder) for _ in range(_BUCKETS)]  # noqa: SIM115 - `close`
        for file, bucket in zip(self._files, self._buckets, strict=True):
            bucket.tofile(file)
        self._buckets = [array("q") for _ in range(_BUCKETS)]
        self._held = 0

    def _entries(self, number: int) -> Iterator[int]:
        if self._files:
            file = self._files[number]
            size = file.tell() // 8
            file.seek(0)
            stored = array("q")
            stored.fromfile(file, size)
            yield from stored
        yield from self._buckets[number]
