"""Span corruption against T5's own code, written out in numpy, and against the example of the paper."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from orchestrator.recipe.pretrain import LONGEST_CORRUPTED
from orchestrator.training.small_tokenizers import SENTINELS
from orchestrator.training.span_corruption import corrupted, noise_mask


def random_spans_noise_mask(length: int, noise_density: float, draw: np.random.Generator) -> np.ndarray:
    """t5/data/preprocessors.py of google-research/text-to-text-transfer-transformer, line by line."""
    mean_noise_span_length = 3.0
    orig_length = length
    length = np.maximum(length, 2)
    num_noise_tokens = int(np.round(np.float32(length) * np.float32(noise_density)))
    num_noise_tokens = np.minimum(np.maximum(num_noise_tokens, 1), length - 1)
    num_noise_spans = int(np.round(np.float32(num_noise_tokens) / np.float32(mean_noise_span_length)))
    num_noise_spans = np.maximum(num_noise_spans, 1)
    num_nonnoise_tokens = length - num_noise_tokens

    def _random_segmentation(num_items: int, num_segments: int) -> np.ndarray:
        first_in_segment = np.pad(draw.permutation(np.arange(num_items - 1) < num_segments - 1), [[1, 0]])
        segment_id = np.cumsum(first_in_segment)
        return np.bincount(segment_id)

    noise_span_lengths = _random_segmentation(num_noise_tokens, num_noise_spans)
    nonnoise_span_lengths = _random_segmentation(num_nonnoise_tokens, num_noise_spans)
    interleaved_span_lengths = np.reshape(
        np.stack([nonnoise_span_lengths, noise_span_lengths], axis=1), [num_noise_spans * 2]
    )
    span_starts = np.cumsum(interleaved_span_lengths)[:-1]
    span_start_indicator = np.bincount(span_starts, minlength=length)
    span_num = np.cumsum(span_start_indicator)
    return np.equal(span_num % 2, 1)[:orig_length]


def noise_span_to_unique_sentinel(tokens: np.ndarray, noise_mask: np.ndarray, first: int) -> np.ndarray:
    """Likewise; `first`: the id of <extra_id_0>."""
    prev_token_is_noise = np.pad(noise_mask[:-1], [[1, 0]])
    first_noise_tokens = np.logical_and(noise_mask, np.logical_not(prev_token_is_noise))
    subsequent_noise_tokens = np.logical_and(noise_mask, prev_token_is_noise)
    sentinel = first + 1 - np.cumsum(first_noise_tokens)
    tokens = np.where(first_noise_tokens, sentinel, tokens)
    return tokens[np.logical_not(subsequent_noise_tokens)]


def spans(mask: list[bool]) -> int:
    return sum(now and not before for before, now in zip([False, *mask], mask, strict=False))


@pytest.mark.parametrize("length", [1, 2, 3, 7, 20, 64, 97, 511, LONGEST_CORRUPTED])
def test_as_many_tokens_and_spans_as_t5_takes_out(length: int) -> None:
    theirs = random_spans_noise_mask(length, 0.15, np.random.default_rng(length)).tolist()
    ours = noise_mask(length, random.Random(length))
    assert (len(ours), sum(ours), spans(ours)) == (length, sum(theirs), spans(theirs))
    assert (ours[0], ours[-1]) == (theirs[0], theirs[-1])
    assert spans(ours) <= len(SENTINELS)


def test_every_place_is_as_likely_as_in_t5() -> None:
    """40 tokens: 6 go in two spans. One of 5 ways to cut the spans, one of 33 to cut what stays."""
    draw, theirs = random.Random(1), np.random.default_rng(1)
    ours = Counter(tuple(noise_mask(40, draw)) for _ in range(6600))
    found = {tuple(random_spans_noise_mask(40, 0.15, theirs).tolist()) for _ in range(3000)}
    assert ours.keys() == found
    assert len(found) == 5 * 33
    assert 15 <= min(ours.values()) <= max(ours.values()) <= 75  # 40 each; four and more deviations of 6.3


def test_inputs_and_targets_are_those_of_t5() -> None:
    tokens, first = np.arange(1000, 1120), 599
    for seed in range(20):
        mask = random_spans_noise_mask(120, 0.15, np.random.default_rng(seed))
        read, written = corrupted(tokens.tolist(), mask.tolist(), range(first, first - 100, -1))
        assert read == noise_span_to_unique_sentinel(tokens, mask, first).tolist()
        assert written == noise_span_to_unique_sentinel(tokens, np.logical_not(mask), first).tolist()


def test_the_papers_example() -> None:
    """Raffel et al. 2020, figure 2, with <X>, <Y> and <Z> as -1, -2 and -3."""
    words = "Thank you for inviting me to your party last week .".split()
    gone = [word in {"for", "inviting", "last"} for word in words]
    told = [
        " ".join({-1: "<X>", -2: "<Y>", -3: "<Z>"}.get(token) or words[token] for token in ids)
        for ids in corrupted(range(len(words)), gone, (-1, -2, -3))
    ]
    assert told == ["Thank you <X> me to your party <Y> week .", "<X> for inviting <Y> last <Z>"]
