"""T5's span corruption (Raffel et al. 2020, §3.1.4): 15 % of a text's tokens in spans of 3 on average are taken out; a
sentinel stands in the place of each, and the target is what was taken out, with a sentinel for each stretch between.

The lengths are those of `random_spans_noise_mask` in google-research/text-to-text-transfer-transformer,
t5/data/preprocessors.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import groupby

DENSITY, MEAN_SPAN = 0.15, 3.0


def noise_mask(length: int, draw: random.Random) -> list[bool]:
    """Which of `length` tokens are taken out: stretches that stay and spans that go, in turn, a stretch first."""
    tokens = max(length, 2)
    noise = min(max(round(tokens * DENSITY), 1), tokens - 1)
    spans = max(round(noise / MEAN_SPAN), 1)
    gone, kept = _parts(noise, spans, draw), _parts(tokens - noise, spans, draw)
    mask = [
        taken
        for pair in zip(kept, gone, strict=True)
        for taken, n in zip((False, True), pair, strict=True)
        for _ in range(n)
    ]
    return mask[:length]


def corrupted(tokens: Sequence[int], mask: Sequence[bool], sentinels: Sequence[int]) -> tuple[list[int], list[int]]:
    """(input, target): the n-th sentinel stands for the n-th span that is out, or in. There are enough sentinels."""
    return list(_told(tokens, mask, sentinels, hidden=True)), list(_told(tokens, mask, sentinels, hidden=False))


def _told(tokens: Sequence[int], mask: Sequence[bool], sentinels: Sequence[int], *, hidden: bool) -> Iterator[int]:
    marks = iter(sentinels)
    for taken, span in groupby(zip(mask, tokens, strict=True), key=lambda pair: pair[0]):
        if taken is hidden:
            yield next(marks)
        else:
            yield from (token for _, token in span)


def _parts(items: int, parts: int, draw: random.Random) -> list[int]:
    """`items` as a sum of `parts` numbers from 1 on, each such sum as likely as the others."""
    cuts = sorted(draw.sample(range(1, items), parts - 1))
    return [end - start for start, end in zip([0, *cuts], [*cuts, items], strict=True)]
