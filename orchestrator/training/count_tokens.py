"""Tokens of a dataset version by a base's tokenizer: `python -m orchestrator.training.count_tokens SPEC.json`.

SPEC.json: {"dataset": folder, "base": folder, "splits": [...]}. On stdout: {field: {total, median, p95, most}}, without
special tokens, over all splits. Memory does not grow with the rows: lengths are counted, not kept.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from orchestrator.paths import read_json


def main(arguments: Sequence[str]) -> int:
    spec = read_json(Path(arguments[0]))
    transformers_logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(spec["base"], local_files_only=True)
    lengths: dict[str, Counter[int]] = {}
    for split in spec["splits"]:
        with pa.memory_map(str(Path(spec["dataset"]) / f"{split}.arrow")) as source, pa.ipc.open_file(source) as file:
            for number in range(file.num_record_batches):
                batch = file.get_batch(number)
                for name in batch.schema.names:
                    ids = tokenizer(batch.column(name).to_pylist(), add_special_tokens=False)["input_ids"]
                    lengths.setdefault(name, Counter()).update(map(len, ids))
    print(json.dumps({name: _summary(counted) for name, counted in lengths.items()}))
    return 0


def _summary(lengths: Counter[int]) -> dict[str, int]:
    return {
        "total": sum(length * rows for length, rows in lengths.items()),
        "median": _quantile(lengths, 0.5),
        "p95": _quantile(lengths, 0.95),
        "most": max(lengths),
    }


def _quantile(lengths: Counter[int], part: float) -> int:
    """The smallest length that at least this part of the rows does not exceed."""
    wanted, seen = part * lengths.total(), 0
    for length, rows in sorted(lengths.items()):
        seen += rows
        if seen >= wanted:
            return length
    return max(lengths)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
