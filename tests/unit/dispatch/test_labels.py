"""Tags that the recipe does not name are refused at submit, as labels are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.dispatch import labels
from orchestrator.recipe.schema import JobRecipe

HELD = {("B-PER O",): 1, ('["O", "B-LOC"]',): 4, ("O",): 9}


def test_tags_of_the_data_that_the_recipe_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "distinct_values", lambda data, split, fields: HELD)
    data: Any = SimpleNamespace(ref="d@1", splits={"train": 9})

    def faults(named: list[str]) -> list[str]:
        task = {"type": "tag", "labels": named}
        train = {"steps": 1, "lr": 1}
        raw = {"name": "n", "base": "b", "dataset": "d", "task": task, "method": {"type": "head"}, "train": train}
        return labels.LabelCheck().faults(JobRecipe.model_validate(raw), Path(), data)

    assert faults(["O", "B-PER", "B-LOC"]) == []
    (fault,) = faults(["O", "B-PER"])
    assert fault.startswith("task.labels: d@1 holds the label `B-LOC` (train row 4); the recipe knows O, B-PER;")


def test_rows_that_bring_their_own_answers_are_all_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row's number, of every split, the first five of each; several right answers where a score knows one."""
    held = {
        "train": [("a\nb", "a"), ("", "a"), ("a\nb", "c"), ("a\na", "a"), *[(f"a\n{n}", "c") for n in range(4)]],
        "validation": [('["a", "b"]', '["b", "a"]')],
    }

    def distinct(_: Any, split: str, fields: tuple[str, ...]) -> dict[tuple[str, ...], int]:
        assert fields == ("list", "right")
        return {values: number for number, values in enumerate(held[split], start=1)}

    monkeypatch.setattr(labels, "distinct_values", distinct)
    data: Any = SimpleNamespace(ref="d@1", splits={"train": 8, "validation": 1})

    def faults(*metrics: str) -> list[str]:
        task = {"type": "classify", "input": "{list}", "candidates": "{list}", "label": "{right}", "metrics": metrics}
        raw = {"name": "n", "base": "b", "dataset": "d", "task": task, "method": {"type": "prompt-design"}}
        return labels.LabelCheck().faults(JobRecipe.model_validate(raw), Path(), data)

    found = faults("accuracy")
    assert [one.partition(": a row")[0] for one in found[:3]] == [
        f"task.candidates: d@1, train row {n}" for n in (2, 3, 4)
    ]
    assert len(found) == 6
    assert found[5] == "task.candidates: d@1: and 3 rows more"
    held["train"] = held["train"][:1]
    (fault,) = faults("accuracy")
    assert "validation row 1: a row has 2 right answers, and accuracy knows one" in fault
    assert faults("record_em", "record_f1") == []
