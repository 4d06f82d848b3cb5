"""One answer from several prompts' answers to the same row (Lester et al. 2021, §5.4: prompt ensembling)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def vote(texts: Sequence[str]) -> str:
    """What most say; of several that as many say, the one that is said first."""
    return max(texts, key=texts.count)


def mean(probabilities: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Label -> mean probability. All hold the same labels."""
    return {label: sum(one[label] for one in probabilities) / len(probabilities) for label in probabilities[0]}


def likeliest(probabilities: Mapping[str, float]) -> str:
    """The label with the highest probability, the first where several are."""
    return max(probabilities, key=lambda label: probabilities[label])
