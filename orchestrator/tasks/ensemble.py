"""One answer from several prompts' answers to the same row (Lester et al. 2021, §5.4: prompt ensembling; Schick &
Schütze 2021, §3.3: patterns that count by their accuracy)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

_LEAST = 1e-30  # of a probability, for its logarithm


def vote(texts: Sequence[str]) -> str:
    """What most say; of several that as many say, the one that is said first."""
    return max(texts, key=texts.count)


def mean(probabilities: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Label -> mean probability. All hold the same labels."""
    return {label: sum(one[label] for one in probabilities) / len(probabilities) for label in probabilities[0]}


def weighted(probabilities: Sequence[Mapping[str, float]], weights: Sequence[float]) -> dict[str, float]:
    """Label -> probability by the weighted mean of the scores, as PET merges its models' logits: softmax of
    sum_i w_i log p_i / sum_i w_i. All count alike where all weights are 0."""
    total = sum(weights)
    shares = [weight / total if total else 1 / len(weights) for weight in weights]
    pairs = list(zip(probabilities, shares, strict=True))
    scores = {label: sum(w * math.log(max(one[label], _LEAST)) for one, w in pairs) for label in probabilities[0]}
    most = max(scores.values())
    powers = {label: math.exp(score - most) for label, score in scores.items()}
    return {label: power / sum(powers.values()) for label, power in powers.items()}


def likeliest(probabilities: Mapping[str, float]) -> str:
    """The label with the highest probability, the first where several are."""
    return max(probabilities, key=lambda label: probabilities[label])
