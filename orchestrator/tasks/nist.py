"""NIST (Doddington 2002) over several references, as the official E2E script has it (tuetschek/e2e-metrics, pymteval).

nltk's differs: it scores each segment against its best single reference instead of all of them merged.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

ORDER = 5
_BETA = -math.log(0.5) / math.log(1.5) ** 2  # half the score at two thirds of the references' length

Words = Sequence[str]
Gram = tuple[str, ...]


def nist(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """The corpus's score; at least 0, without an upper end."""
    every, sizes = [reference for row in references for reference in row], range(1, ORDER + 1)
    known: Counter[Gram] = Counter(gram for reference in every for gram in _grams(reference, sizes))
    known[()] = sum(map(len, every))
    total = 0.0
    for size in sizes:
        places = sum(len(hypothesis) - size + 1 for hypothesis in hypotheses)
        worth = sum(_worth(h, row, size, known) for h, row in zip(hypotheses, references, strict=True))
        total += worth / places if places > 0 else 0.0
    length = sum(len(hypothesis) for hypothesis in hypotheses)
    return total * _penalty(length, sum(sum(map(len, row)) / len(row) for row in references))


def _worth(hypothesis: Words, row: Sequence[Words], size: int, known: Counter[Gram]) -> float:
    """The information in the hypothesis's n-grams that the references have, each as often as the one with the most."""
    most: Counter[Gram] = Counter()
    for reference in row:
        most |= Counter(_grams(reference, [size]))
    found = Counter(_grams(hypothesis, [size])) & most
    return sum(count * math.log2(known[gram[:-1]] / known[gram]) for gram, count in found.items())


def _grams(words: Words, sizes: Iterable[int]) -> list[Gram]:
    return [tuple(words[i : i + size]) for size in sizes for i in range(len(words) - size + 1)]


def _penalty(length: int, wanted: float) -> float:
    ratio = length / wanted if wanted else 0.0
    return 1.0 if ratio >= 1 else 0.0 if ratio <= 0 else math.exp(-_BETA * math.log(ratio) ** 2)
