"""The demo's rows as files that `ptq dataset add` reads."""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.demo import SEED, TRAIN_ROWS, VALIDATION_ROWS
from orchestrator.demo.restaurants import rows


def write_rows(folder: Path) -> dict[str, Path]:
    """Write train.jsonl and validation.jsonl; split -> file."""
    wanted = {"train": (TRAIN_ROWS, False), "validation": (VALIDATION_ROWS, True)}
    files = {}
    for split, (count, held_out) in wanted.items():
        files[split] = folder / f"{split}.jsonl"
        with files[split].open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(count, seed=SEED, held_out=held_out))
    return files
