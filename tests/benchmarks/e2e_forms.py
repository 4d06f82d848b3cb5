"""E2E's records in four forms, one of them the human description: what the small decoder of the proof is pretrained on.

The base is never told which form is wanted. Forms other than the description are made from the record alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

DELIMITER = "||"


def forms(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a `source||target` file with the fields source, description, values, questions."""
    for line in path.read_text(encoding="utf-8").splitlines():
        source, description = line.split(DELIMITER)
        pairs = [part.split(" : ", 1) for part in source.strip().split(" | ")]
        yield {
            "source": source.strip(),
            "description": description.strip(),
            "values": " , ".join(value for _, value in pairs),
            "questions": " ".join(f"What is the {key} ? {value} ." for key, value in pairs),
        }


def write_forms(source: Path, target: Path) -> None:
    with target.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in forms(source))
