"""Quick versions of `make proof-registry`."""

from __future__ import annotations

import json
import random
from pathlib import Path

from registry_helpers import add_dataset, finished_job, registry_at
from registry_proofs import fill, flips, kill_rounds, open_at

from orchestrator.data.columns import BATCH_ROWS
from orchestrator.data.rows import ReadOptions
from orchestrator.data.staging import stage
from orchestrator.paths import HomePaths
from orchestrator.registry import metrics, search


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    registry = registry_at(tmp_path / "home")
    version = add_dataset(registry, tmp_path, "e2e", [{"source": f"s{i}", "target": f"t{i}"} for i in range(300)])
    finished_job(registry, tmp_path / "jobs", version)
    assert all(found for _, found in flips(registry, 40, random.Random(7)))


def test_one_character_anywhere_changes_the_digest(tmp_path: Path) -> None:
    """In more rows than are read at once."""
    rows = [{"text": f"text number {i}", "label": str(i % 2)} for i in range(2 * BATCH_ROWS + 9)]
    generator = random.Random(3)

    def digest() -> str:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with stage(HomePaths(tmp_path / "home"), {"train": [tmp_path / "rows.jsonl"]}, ReadOptions()) as staged:
            return staged.digest

    found = {digest()}
    for number in (0, BATCH_ROWS, len(rows) - 1, *(generator.randrange(len(rows)) for _ in range(3))):
        kept = rows[number]["text"]
        at = generator.randrange(len(kept))
        rows[number]["text"] = kept[:at] + chr(ord(kept[at]) + 1) + kept[at + 1 :]
        found.add(digest())
        rows[number]["text"] = kept
    assert len(found) == 7
    assert digest() in found


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """One kill of each command; the proof does a hundred."""
    found = kill_rounds(tmp_path, 1, random.Random(1), rows=2000)
    assert found == dict.fromkeys(found, (1, 0))


def test_a_large_registry_answers_as_a_small_one(tmp_path: Path) -> None:
    registry = registry_at(tmp_path / "home")
    assert fill(registry, 300, 30) < 100
    again = open_at(tmp_path / "home")
    with again.read() as conn:
        found = search.find(conn, "method=prefix-tuning and metrics.bleu>60", ["-metrics.bleu"], limit=10)
        values = search.values(conn, found.ids, ["metrics.bleu", "method"])
        assert metrics.stale_latest(conn) == 0
    assert found.total == sum((j * 7919 + 1) % 10007 / 100 > 60 and j % 3 == 0 for j in range(2, 301))
    assert all(value["metrics.bleu"] > 60 and value["method"] == "prefix-tuning" for value in values.values())
