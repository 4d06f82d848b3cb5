from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from orchestrator.tasks.metrics import METRICS, score


def test_bleu_by_hand() -> None:
    """5 words of 6 right: precisions 5/6, 4/5, 3/4, 2/3, no brevity penalty."""
    scores = score(["bleu"], ["The cat sat on a mat"], [["the cat sat on a rug"]])
    assert scores["bleu"] == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)


def test_bleu_takes_the_nearest_reference_for_its_length() -> None:
    """The second reference is as long as the prediction: no brevity penalty."""
    one = score(["bleu"], ["a b c d"], [["a b c d e f g h"]])["bleu"]
    two = score(["bleu"], ["a b c d"], [["a b c d e f g h", "x b c d"]])["bleu"]
    assert one == pytest.approx(100 * math.exp(1 - 8 / 4))
    assert two == pytest.approx(100)


def test_bleu_with_missing_references_is_sacrebleu_with_none(shared_data: Path) -> None:
    """E2E's validation rows grouped by source: one to many references each."""
    import sacrebleu

    groups: dict[str, list[str]] = {}
    with (shared_data / "e2e" / "src1_valid.txt").open(encoding="utf-8") as lines:
        for line in lines:
            source, _, target = line.partition("||")
            groups.setdefault(source, []).append(target.strip())
    references = [group for group in groups.values() if len(group) > 1][:80]
    predictions = [random.Random(i).choice(group) for i, group in enumerate(references[1:] + references[:1])]
    assert len({len(group) for group in references}) > 1
    most = max(map(len, references))
    streams = [[group[i] if i < len(group) else None for group in references] for i in range(most)]
    metric = sacrebleu.metrics.BLEU(tokenize="13a", lowercase=True, force=True)
    assert score(["bleu"], predictions, references)["bleu"] == metric.corpus_score(predictions, streams).score


def test_bleu_ignores_case_and_splits_punctuation() -> None:
    assert score(["bleu"], ["The Vaults, a pub in town."], [["the vaults , a pub in town ."]])["bleu"] == pytest.approx(
        100
    )


def test_rouge_by_hand() -> None:
    """Prediction a b c, references a c d e and b: ROUGE-L takes the better of 4/7 and 2/4."""
    scores = score(["rouge_1", "rouge_2", "rouge_l"], ["a b c"], [["a c d e", "b"]])
    assert scores["rouge_l"] == pytest.approx(100 * 4 / 7)
    assert scores["rouge_1"] == pytest.approx(100 * 4 / 7)
    assert scores["rouge_2"] == 0


def test_rouge_is_the_mean_over_rows_and_stems() -> None:
    assert score(["rouge_l"], ["cats running", "x"], [["cat run"], ["y"]])["rouge_l"] == pytest.approx(50)


def test_exact_match_takes_any_reference() -> None:
    assert score(["exact_match"], [" a", "b", "C"], [["x", "a "], ["c"], ["c"]])["exact_match"] == pytest.approx(1 / 3)


def test_accuracy_and_macro_f1_by_hand() -> None:
    """Label 1: precision 2/3, recall 1 -> 0.8. Label 0: precision 1, recall 1/2 -> 2/3."""
    scores = score(["accuracy", "macro_f1"], ["1", "1", "1", "0"], [["1"], ["1"], ["0"], ["0"]])
    assert scores["accuracy"] == 0.75
    assert scores["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)


def test_a_label_never_predicted_counts_as_zero() -> None:
    assert score(["macro_f1"], ["a", "a"], [["a"], ["b"]])["macro_f1"] == pytest.approx((2 / 3) / 2)


@pytest.mark.parametrize(
    ("names", "predictions", "references"),
    [(["blue"], ["a"], [["a"]]), (["bleu"], [], []), (["bleu"], ["a"], []), (["bleu"], ["a", "b"], [["a"], []])],
)
def test_what_cannot_be_scored_is_refused(
    names: list[str], predictions: list[str], references: list[list[str]]
) -> None:
    with pytest.raises(ValueError):
        score(names, predictions, references)


def test_every_metric_of_the_recipes_exists() -> None:
    from typing import get_args

    from orchestrator.recipe.tasks import Classify, Generate

    for task in (Generate, Classify):
        (names,) = get_args(task.model_fields["metrics"].annotation)
        assert set(get_args(names)) <= set(METRICS)


@pytest.mark.parametrize("name", list(METRICS))
def test_right_predictions_get_the_highest_score(name: str) -> None:
    texts = ["the eagle is a cheap pub", "the vaults serves good food"]
    best = 100 if name in {"bleu", "rouge_1", "rouge_2", "rouge_l"} else 1
    assert score([name], texts, [[text] for text in texts])[name] == pytest.approx(best)
