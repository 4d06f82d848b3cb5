"""Scores of short answers: SQuAD's exact match and F1 (Rajpurkar et al. 2016, evaluate-v1.1.py; ReCoRD and MRQA too),
and T5's rule for Winograd referents (text-to-text-transfer-transformer, postprocessors.py)."""

from __future__ import annotations

import re
import string
from collections import Counter

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
    """Of the words that both have; two empty answers agree (SQuAD 2)."""
    said, wanted = normalized(prediction).split(), normalized(reference).split()
    if not said or not wanted:
        return float(said == wanted)
    return _f1(said, wanted)


def record_f1(prediction: str, reference: str) -> float:
    """As `token_f1`, but two answers of which nothing is left have nothing in common (ReCoRD's evaluate.py)."""
    return _f1(normalized(prediction).split(), normalized(reference).split())


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
    if not said or ("'" in " ".join(said)) != ("'" in " ".join(wanted)):
        return False
    return set(said) <= set(wanted) or set(wanted) <= set(said)


def _referent(text: str) -> list[str]:
    return [word for word in text.strip().lower().split(" ") if word not in _DETERMINERS]
