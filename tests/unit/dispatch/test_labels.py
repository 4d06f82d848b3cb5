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
