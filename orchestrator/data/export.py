"""A version's rows as files for other tools: one a split, streamed, all of them or none."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data.layout import split_file
from orchestrator.data.store import read_rows
from orchestrator.paths import folder_written_atomically


def export_rows(folder: Path, fields: Sequence[str], splits: Sequence[str], out: Path, format_: str) -> None:
    """Write `out`/<split>.<format>; format: parquet, jsonl or csv."""
    writers = {"parquet": _parquet, "jsonl": _json_lines, "csv": _csv}
    with folder_written_atomically(out) as made:
        for split in splits:
            writers[format_](folder, split, fields, made / f"{split}.{format_}")


def _parquet(folder: Path, split: str, fields: Sequence[str], path: Path) -> None:
    del fields
    with (
        pa.memory_map(str(split_file(folder, split))) as source,
        pa.ipc.open_file(source) as file,
        pq.ParquetWriter(path, file.schema) as writer,
    ):
        for number in range(file.num_record_batches):
            writer.write_batch(file.get_batch(number))


def _json_lines(folder: Path, split: str, fields: Sequence[str], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for values in read_rows(folder, split):
            file.write(json.dumps(dict(zip(fields, values, strict=True)), ensure_ascii=False) + "\n")


def _csv(folder: Path, split: str, fields: Sequence[str], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(fields)
        writer.writerows(read_rows(folder, split))
