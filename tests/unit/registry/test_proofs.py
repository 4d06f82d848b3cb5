"""Quick versions of `make proof-registry`."""

from __future__ import annotations

import random
from pathlib import Path

from registry_helpers import add_dataset, finished_job, registry_at
from registry_proofs import fill, flips, kill_rounds, open_at

from orchestrator.data import store
from orchestrator.registry import metrics, search


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    registry = registry_at(tmp_path / "home")
    version = add_dataset(registry, tmp_path, "e2e", [{"source": f"s{i}", "target": f"t{i}"} for i in range(300)])
    finished_job(registry, tmp_path / "jobs", version)
    assert all(found for _, found in flips(registry, 40, random.Random(7)))


def test_one_character_anywhere_changes_the_digest() -> None:
    rows = [(f"text number {i}", str(i % 2)) for i in range(2000)]
    generator = random.Random(3)

    def digest() -> str:
        encoded = [store._encode(row).encode() + b"\n" for row in rows]
        return store.hashlib.sha256(b"".join(encoded)).hexdigest()

    before = digest()
    for _ in range(25):
        number = generator.randrange(len(rows))
        text, label = rows[number]
        at = generator.randrange(len(text))
        rows[number] = (text[:at] + chr(ord(text[at]) + 1) + text[at + 1 :], label)
        assert digest() != before
        rows[number] = (text, label)
    assert digest() == before


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """One kill of each command; the proof does a hundred."""
    found = kill_rounds(tmp_path, 5, random.Random(1), rows=2000)
    assert {name: faults for name, (_, faults) in found.items()} == dict.fromkeys(found, 0)


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
