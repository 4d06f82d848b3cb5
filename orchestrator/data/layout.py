"""The files of a dataset version's folder. No pyarrow here: `ptq submit` names datasets without opening them.

<split>.arrow    Arrow IPC file, one string column a field
version.json     {format, digest, fields, splits}
bad_rows.jsonl   rows that --skip-bad set aside: {file, line, reason, raw}; only when there are any
manifest.json    the hash of every file, see `orchestrator.manifest`
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.paths import write_json

FORMAT = 1
VERSION = "version.json"
BAD_ROWS = "bad_rows.jsonl"


def split_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.arrow"


def write_version(folder: Path, digest: str, fields: Sequence[str], splits: dict[str, int]) -> None:
    write_json(folder / VERSION, {"format": FORMAT, "digest": digest, "fields": list(fields), "splits": splits})


def bad_rows(folder: Path) -> list[dict[str, Any]]:
    """What --skip-bad set aside."""
    path = folder / BAD_ROWS
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
