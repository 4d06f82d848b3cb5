"""A dataset version as the tensor tower sees it: a folder with one Arrow file a split, memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa


class Rows(Sequence[dict[str, str]]):
    """The rows of one split; every value is text."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.fields: list[str] = table.column_names

    @classmethod
    def open(cls, folder: Path, split: str) -> Rows:
        with pa.memory_map(str(folder / f"{split}.arrow")) as source:
            return cls(pa.ipc.open_file(source).read_all())

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: int) -> dict[str, str]:  # type: ignore[override]
        return {name: self.table.column(name)[index].as_py() for name in self.fields}

    def __iter__(self) -> Iterator[dict[str, str]]:
        for batch in self.table.to_batches(max_chunksize=1024):
            yield from batch.to_pylist()


def has_split(folder: Path, split: str) -> bool:
    return (folder / f"{split}.arrow").is_file()
