"""Scores of short answers: SQuAD's exact match and F1 (Rajpurkar et al. 2016, evaluate-v1.1.py; ReCoRD and MRQA too;
evaluate-v2.0.py where rows may have no answer), and T5's rule for Winograd referents
(text-to-text-transfer-transformer, postprocessors.py)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

#: Behind a referent among the references of a row: the referent is not one, and right is any other answer. No text of
#: a dataset holds a NUL.
NOT_IT = "\0not"

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_DETERMINERS = frozenset(
    "a an few her his each every many much my our some that the their these this those which whose your".split()
)


def normalized(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(prediction: str, reference: str) -> float:
    return float(normalized(prediction) == normalized(reference))


def token_f1(prediction: str, reference: str) -> float:
    """Of the words that both have: two answers of which nothing is left (`A` and `the`) have nothing in common, as in
    SQuAD 1.1's evaluate.py and ReCoRD's. An empty reference says that there is no answer (SQuAD 2), and only none
    agrees with it."""
    said = normalized(prediction).split()
    return _f1(said, normalized(reference).split()) if reference else float(not said)


def or_none(texts: Sequence[str]) -> list[str]:
    """The answers by evaluate-v2.0.py, which takes one of which nothing is left (`A`) for none; no answer is `""`."""
    return [text for text in texts if normalized(text)] or [""]


def _f1(said: list[str], wanted: list[str]) -> float:
    common = sum((Counter(said) & Counter(wanted)).values())
    if not common:
        return 0.0
    # In the scripts' own order: the same to the last digit.
    precision, recall = common / len(said), common / len(wanted)
    return (2 * precision * recall) / (precision + recall)


def same_referent(prediction: str, referent: str) -> bool:
    """Whether the words of one are among the other's, determiners aside; a possessive is never its owner."""
    said, wanted = _referent(prediction), _referent(referent)
    if not said or ("'" in said) != ("'" in wanted):
        return False
    words, others = set(said.split(" ")), set(wanted.split(" "))  # of nothing, one empty word: no other is in it
    return words <= others or others <= words


def names_something(prediction: str) -> bool:
    """Whether anything is left of it without determiners: else it is wrong whatever the referent is."""
    return bool(_referent(prediction))


def _referent(text: str) -> str:
    return " ".join(word for word in text.strip().lower().split(" ") if word not in _DETERMINERS)
