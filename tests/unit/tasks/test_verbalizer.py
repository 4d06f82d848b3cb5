from __future__ import annotations

import pytest

from orchestrator.tasks.verbalizer import label_faults


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"a": [], "b": ["x"]}, "label `a` has no words"),
        ({"a": [" "], "b": ["x"]}, "label `a` has an empty word"),
        ({"a": ["x"], "b": ["x"]}, "the word `x` stands under `a` and `b`"),
        ({"a": ["x", "x"], "b": ["y"]}, "the word `x` stands twice under `a`"),
    ],
)
def test_faults_of_labels(labels: dict[str, list[str]], said: str) -> None:
    assert label_faults(labels) == [said]


def test_sound_labels_have_no_faults() -> None:
    assert label_faults({"Positive": ["好", "棒"], "Negative": ["差"]}) == []
