"""Distinct values of stored columns, against plain Python."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.distinct import distinct
from orchestrator.data.store import SplitWriter

VALUES = st.sampled_from(["", "a", "b", "é", "[MASK]", "1"])


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=30), copies=st.sampled_from([1, 900]))
def test_every_value_and_its_first_row(tmp_path_factory: object, rows: list[tuple[str, str]], copies: int) -> None:
    folder: Path = tmp_path_factory.mktemp("rows")  # type: ignore[attr-defined]
    writer = SplitWriter(folder / "train.arrow", ["x", "y"])
    for row in rows * copies:  # more than one batch of 4,096 rows
        writer.add(row)
    writer.close()
    pairs, seconds = {}, {}
    for number, (x, y) in enumerate(rows, start=1):
        pairs.setdefault((y, x), number)
        seconds.setdefault((y,), number)
    assert distinct(folder, "train", ["y", "x"]) == pairs
    assert distinct(folder, "train", ["y"]) == seconds
