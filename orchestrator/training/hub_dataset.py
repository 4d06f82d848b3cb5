"""A dataset of the Hugging Face hub as JSON lines, one file a split.

    python -m orchestrator.training.hub_dataset ID OUT_FOLDER [--config C] [--revision R]

`ptq dataset add NAME hub:ID` starts this program, because importing `datasets` takes seconds. Class numbers are written
as their names (-1, the hub's "no label", as null). On stdout: {"splits": {split: file}, "commit": … or null}.
Exit codes: 0 done; 2 the dataset cannot be used; 3 not there or not reachable. The last line on stderr says why.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import datasets

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("id")
    parser.add_argument("out", type=Path)
    parser.add_argument("--config")
    parser.add_argument("--revision")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    try:
        loaded, commit = _load(arguments)
    except (datasets.exceptions.DatasetNotFoundError, OSError) as error:  # OSError: no network, offline, no cache
        return _refuse(3, error)
    except (ValueError, RuntimeError) as error:  # a configuration must be named; a dataset with its own code
        return _refuse(2, error)
    files = {split: _write(rows, arguments.out, str(split)) for split, rows in loaded.items()}
    print(json.dumps({"splits": files, "commit": commit}))
    return 0


def _load(arguments: argparse.Namespace) -> tuple[Any, str | None]:
    """By its name on the hub, with the commit that its rows are of; or a folder that `save_to_disk` wrote."""
    if any((Path(arguments.id) / name).is_file() for name in ("dataset_dict.json", "state.json")):
        loaded = datasets.load_from_disk(arguments.id)
        return loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}, None
    builder = datasets.load_dataset_builder(arguments.id, arguments.config, revision=arguments.revision)
    commit = builder.hash if _COMMIT.fullmatch(builder.hash or "") else None
    # Offline `datasets` takes what its cache holds, whatever revision was asked for.
    if datasets.config.HF_HUB_OFFLINE and commit and arguments.revision not in {None, commit}:
        raise datasets.exceptions.DatasetNotFoundError(
            f"the revision {arguments.revision} cannot be asked for (HF_HUB_OFFLINE is set); the cache holds the "
            f"commit {commit}"
        )
    builder.download_and_prepare()
    return builder.as_dataset(), commit


def _write(rows: Any, folder: Path, split: str) -> str:
    if not _SPLIT.fullmatch(split):
        raise SystemExit(_refuse(2, ValueError(f"the split name {split!r} cannot be used")))
    classes = {name: kind for name, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)}
    path = folder / f"{split}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            for name, kind in classes.items():
                row[name] = None if row[name] is None or row[name] < 0 else kind.int2str(row[name])
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    return str(path)


def _refuse(code: int, error: Exception) -> int:
    sys.stderr.write(" ".join(str(error).split()) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
