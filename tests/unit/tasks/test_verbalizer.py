from __future__ import annotations

import pytest

from orchestrator.tasks.verbalizer import Verbalizer, label_faults, token_faults

LABELS = {"Positive": ["好", "棒"], "Negative": ["差"]}


def test_a_label_scores_the_mean_of_its_words() -> None:
    verbalizer = Verbalizer.of(LABELS)
    assert verbalizer.flat_words == ["好", "棒", "差"]
    assert verbalizer.owners == [0, 0, 1]
    assert verbalizer.label_scores([4.0, 0.0, 2.5]) == [2.0, 2.5]
    assert verbalizer.choose([4.0, 0.0, 2.5]) == "Negative"
    assert verbalizer.choose([4.0, 2.0, 2.5]) == "Positive"


def test_the_first_of_equal_labels_is_chosen() -> None:
    assert Verbalizer.of(LABELS).choose([1.0, 1.0, 1.0]) == "Positive"


def test_scores_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 scores for 3 words"):
        Verbalizer.of(LABELS).choose([1.0, 2.0])


def test_index_of_a_label() -> None:
    assert Verbalizer.of(LABELS).index("Negative") == 1
    with pytest.raises(KeyError):
        Verbalizer.of(LABELS).index("negative")


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
    assert label_faults(LABELS) == []


def test_words_must_be_one_token_of_the_base() -> None:
    vocabulary = {"好": [3], "棒": [0], "差": [4, 5]}
    assert token_faults(LABELS, vocabulary.__getitem__, unknown=0) == [
        "the word `棒` of label `Positive` is not in the base's vocabulary",
        "the word `差` of label `Negative` is 2 tokens of the base; a [MASK] holds one",
    ]
