"""A dataset version as a `datasets` folder: `python -m orchestrator.training.dataset_out SPEC.json`.

SPEC.json: {"dataset": folder of the version, "out": folder to make}. `datasets.load_from_disk` reads it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import datasets

from orchestrator.paths import folder_written_atomically, read_json
from orchestrator.training.rows import Rows


def main(arguments: Sequence[str]) -> int:
    spec = read_json(Path(arguments[0]))
    folder = Path(spec["dataset"])
    datasets.disable_progress_bars()
    splits = read_json(folder / "version.json")["splits"]
    made = datasets.DatasetDict({split: datasets.Dataset(Rows.open(folder, split).table) for split in splits})
    with folder_written_atomically(Path(spec["out"])) as out:
        made.save_to_disk(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
