from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from orchestrator.errors import BadInput
from orchestrator.tasks import captions, webnlg
from orchestrator.tasks.answers import NOT_IT
from orchestrator.tasks.metrics import METRICS, score
from tests import official
from tests.compared_scores import Compared, compared
from tests.metric_rows import SAID, WANTED


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

    from orchestrator.recipe.tasks import Classify, Cloze, Generate, PlainText, Span, Tag

    for task in (Generate, Classify, Cloze, Tag, Span, PlainText):
        (names,) = get_args(task.model_fields["metrics"].annotation)
        assert set(get_args(names)) <= set(METRICS)


HUNDRED = {"bleu", "webnlg_bleu", "dart_bleu", "rouge_1", "rouge_2", "rouge_l", "squad_em", "squad_f1"}
OF_THEIR_OWN = {
    "nist",
    "ter",
    "webnlg_ter",
    *captions.NEED_JAVA,
    "perplexity",
    "entity_f1",
    "tag_accuracy",
    "group_exact_match",
}


@pytest.mark.parametrize("name", [name for name in METRICS if name not in OF_THEIR_OWN])
def test_right_predictions_get_the_highest_score(name: str) -> None:
    texts = ["the eagle is a cheap pub", "the vaults serves good food"]
    best = 100 if name in HUNDRED else 1
    assert score([name], texts, [[text] for text in texts], labels=texts)[name] == pytest.approx(best)


def test_nist_is_the_official_scripts() -> None:
    """The figure is what tuetschek/e2e-metrics (metrics/pymteval.py) prints for these rows."""
    assert score(["nist"], SAID, WANTED)["nist"] == pytest.approx(4.444105819529568, abs=1e-12)


def test_nist_with_one_reference_each_is_nltks() -> None:
    from nltk.translate.nist_score import corpus_nist

    said = ["a b c d e f g", "b c a d e", "x a b c d e f"]
    wanted = ["a b c d e g f h", "b c d e a f", "x a c b d e f a"]
    expected = corpus_nist([[text.split()] for text in wanted], [text.split() for text in said], n=5)
    assert score(["nist"], said, [[text] for text in wanted])["nist"] == pytest.approx(expected, abs=1e-12)


def test_what_needs_java_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "find_spec", lambda name: None)
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    with pytest.raises(BadInput, match=r"the package pycocoevalcap .* and a Java runtime"):
        score(["meteor"], SAID, WANTED)


@pytest.mark.parametrize(
    ("said", "wanted", "em", "f1"),
    [
        ("The Denver Broncos!", ["Denver Broncos", "Broncos"], 100, 100),
        ("in the year of 1066 a", ["1066", "the year 1066"], 0, 100 * 4 / 6),
        ("an a the", ["the"], 100, 0),
        ("", ["no"], 0, 0),
        ("", [""], 100, 100),
        ("well-known", ["well known", "wellknown"], 100, 100),
        ("Ångström  x x", ["ångström x y"], 0, 100 * 4 / 6),
    ],
)
def test_squad_scores_by_hand(said: str, wanted: list[str], em: float, f1: float) -> None:
    """By the rules of evaluate-v1.1.py: no articles, no punctuation, words counted as often as both have them."""
    found = score(["squad_em", "squad_f1"], [said], [wanted])
    assert found == {"squad_em": em, "squad_f1": pytest.approx(f1)}


@pytest.mark.parametrize(
    ("said", "referent", "right"),
    [
        ("The cat", "cat", True),
        ("Bob", "Bob's hat", False),
        ("my father", "the old father of Tim", True),
        ("", "Bob", False),
        ("dog", "cat", False),
    ],
)
def test_winograd_referents_by_t5s_rule(said: str, referent: str, right: bool) -> None:
    assert score(["wsc"], [said], [[referent]])["wsc"] == float(right)


def test_superglue_scores_are_scikit_learns() -> None:
    from sklearn.metrics import accuracy_score, f1_score

    wanted, said = list("eecnnceeen"), list("eecnneecne")
    expected = (accuracy_score(wanted, said) + f1_score(wanted, said, average="macro")) / 2
    assert score(["cb"], said, [[label] for label in wanted])["cb"] == pytest.approx(expected, abs=1e-12)
    wanted, said, questions = list("1100101"), list("1110001"), list("aabbccc")
    references = [list(pair) for pair in zip(wanted, questions, strict=True)]
    found = score(["positive_f1", "group_exact_match", "accuracy"], said, references, labels=["0", "1"])
    assert found["positive_f1"] == pytest.approx(f1_score([w == "1" for w in wanted], [s == "1" for s in said]))
    assert found["group_exact_match"] == pytest.approx(1 / 3)  # of three questions, a is right in all of its answers
    assert found["accuracy"] == pytest.approx(5 / 7)


def test_the_positive_label_is_the_tasks_whatever_the_rows_hold() -> None:
    """Rows with `0` alone, all said rightly: nothing positive was there to be found, and nothing was."""
    from sklearn.metrics import f1_score

    wanted, said = ["0", "0"], ["0", "0"]
    expected = f1_score([0, 0], [0, 0], zero_division=0)
    assert score(["positive_f1"], said, [[one] for one in wanted], labels=["0", "1"])["positive_f1"] == expected == 0
    with pytest.raises(ValueError, match="all labels of the task"):
        score(["positive_f1"], said, [[one] for one in wanted])


def test_entities_are_scored_whole() -> None:
    """By hand: of 3 found and 3 wanted, 2 agree in both ends and the type."""
    references = [["B-PER I-PER O B-LOC"], ['["O", "B-ORG"]']]
    said = ["B-PER I-PER O B-ORG", "O B-ORG"]
    found = score(["entity_f1", "tag_accuracy"], said, references)
    assert found["entity_f1"] == pytest.approx(2 / 3)
    assert found["tag_accuracy"] == pytest.approx(5 / 6)


def test_perplexity_is_over_all_tokens() -> None:
    assert score(["perplexity"], ["2.0 1", "4.0 5"], [["a"], ["b"]])["perplexity"] == pytest.approx(math.e)


def test_record_is_scored_as_its_own_script_does(shared_data: Path) -> None:
    """Real questions, answered with any of their entities; and what little is left of `The`."""
    draw, said, wanted = random.Random(3), ["The", "the U.S.", "a b c d e f g"], [["A"], ["US", "x"], ["b c q", "g"]]
    for name in ("train", "dev32"):
        for line in (shared_data / "fewglue" / "ReCoRD" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            text = row["passage"]["text"]
            for question in row["qas"]:
                for entity in draw.sample(row["passage"]["entities"], 5):
                    said.append(text[entity["start"] : entity["end"] + draw.choice((0, 1, 9))])
                    wanted.append([answer["text"] for answer in question["answers"]])
    em, f1 = (figure / 100 for figure in official.squad(said, wanted))
    assert 0.05 < em < f1 < 0.9
    assert score(["record_em", "record_f1"], said, wanted) == {
        "record_em": pytest.approx(em, rel=1e-15),
        "record_f1": pytest.approx(f1, rel=1e-15),
    }


def test_winograd_rows_whose_referent_is_none() -> None:
    """SuperGLUE's accuracy: a row that says `false` of its span is right where another one is chosen."""
    wanted = [["the cat"], ["the cat", NOT_IT], ["the cat", NOT_IT], ["the cat"]]
    assert score(["wsc"], ["The cat", "cat", "the dog", "the dog"], wanted) == {"wsc": 0.5}


@pytest.mark.parametrize("one", compared(), ids=lambda one: f"{one.benchmark}: {one.metric}")
def test_scores_are_the_official_ones(one: Compared) -> None:
    """On rows that make the usual mistakes visible: none of these figures is 0 or the best there is."""
    assert one.agrees, one
    assert 0.05 < one.official / (100 if one.metric in HUNDRED else 1) < 0.95


def test_ter_is_smaller_for_the_better_text() -> None:
    said = ("the CAT, sat", "The cat sat.", "a")
    found = [score(["ter", "webnlg_ter"], [text], [["The cat sat."]]) for text in said]
    assert [one["ter"] for one in found] == pytest.approx([2 / 3, 0, 1])
    assert [one["webnlg_ter"] for one in found] == pytest.approx([2 / 4, 0, 1])


def test_what_needs_unidecode_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webnlg, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"the package Unidecode \(pip install 'ptq\[webnlg\]'\)"):
        score(["webnlg_bleu"], SAID, WANTED)
