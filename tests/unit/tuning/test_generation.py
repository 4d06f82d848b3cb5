"""Writing text: against a loop without a cache, against brute force, alone and in company."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
import transformers
from tiny_bases import V, host
from tuning_helpers import ALL, built, pairs, rows, run

from orchestrator.tuning import BaseHost, Prompt, Row, RowBatch, generate

WRITERS = ["gpt2", "llama", "gemma2", "opt", "t5", "bart"]


def inputs_of(base: BaseHost, config: str, count: int = 4, seed: int = 2) -> tuple[list[Row], Prompt]:
    method = built(base, ALL[config])
    return [
        Row(r.ids, None, 0, infix_at=r.infix_at) for r in rows(base, method, count, seed=seed)
    ], method.prompt().detach()


def written(
    base: BaseHost,
    batch: Sequence[Row],
    prompts: Sequence[Prompt],
    *,
    side: str = "left",
    beams: int = 1,
    ends: Sequence[int] = (),
) -> list[list[int]]:
    collated = RowBatch.collate(batch, pad_id=base.pad_id, side=side)  # type: ignore[arg-type]
    return generate(base, collated, prompts, max_new_tokens=6, beams=beams, eos_token_ids=ends)


def next_log_probabilities(base: BaseHost, row: Row, so_far: list[int], prompt: Prompt) -> torch.Tensor:
    """[V], by a plain forward over all that has been written."""
    if base.kind == "seq2seq":
        asked = Row(row.ids, [-100] * len(so_far) + [0], 0, decoder_ids=[1, *so_far])
    else:
        ids = [*row.ids, *so_far, 0]
        asked = Row(ids, [-100] * (len(ids) - 1) + [0], 0, infix_at=row.infix_at)
    return run(base, [asked], [prompt]).logits[0].log_softmax(-1)


@pytest.mark.parametrize(
    ("name", "config"),
    [pair for pair in pairs(WRITERS) if pair[1] in {"prompt-tuning", "prefix-tuning", "p-tuning", "head", "infix"}],
)
def test_greedy_equals_a_loop_without_a_cache(name: str, config: str) -> None:
    base = host(name, torch.float64)
    batch, prompt = inputs_of(base, config)
    expected = []
    for row in batch:
        so_far: list[int] = []
        while len(so_far) < 6:
            so_far.append(int(next_log_probabilities(base, row, so_far, prompt).argmax()))
        expected.append(so_far)
    assert written(base, batch, [prompt], ends=[]) == expected
    assert len({tuple(tokens) for tokens in expected}) > 1  # the rows differ, or this test shows nothing


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_a_beam_as_wide_as_the_vocabulary_finds_the_best_text(name: str) -> None:
    base = host(name, torch.float64)
    (row,), prompt = inputs_of(base, "prefix-tuning", 1)
    first = next_log_probabilities(base, row, [], prompt)
    seconds = [next_log_probabilities(base, row, [token], prompt) for token in range(V)]
    best = max(
        itertools.product(range(V), repeat=2), key=lambda pair: float(first[pair[0]] + seconds[pair[0]][pair[1]])
    )
    batch = RowBatch.collate([row], pad_id=0)
    assert generate(base, batch, [prompt], max_new_tokens=2, beams=V, eos_token_ids=[]) == [list(best)]


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_the_shortest_text_and_repeats_against_a_plain_loop(name: str) -> None:
    """An end mark is out of the question before the shortest length, a pair of tokens written before at any time."""
    base = host(name, torch.float64)
    batch, prompt = inputs_of(base, "prefix-tuning", 3)
    free = written(base, batch, [prompt])
    end = free[0][0]
    expected = []
    for row in batch:
        so_far: list[int] = []
        while len(so_far) < 6:
            scores = next_log_probabilities(base, row, so_far, prompt)
            if len(so_far) < 2:
                scores[end] = -torch.inf
            start = [1] if base.kind == "seq2seq" else []  # the decoder's start counts as written
            pairs_before = set(itertools.pairwise([*start, *so_far]))
            for token in range(V):
                if so_far and (so_far[-1], token) in pairs_before:
                    scores[token] = -torch.inf
            so_far.append(int(scores.argmax()))
            if so_far[-1] == end:
                so_far.pop()
                break
        expected.append(so_far)
    collated = RowBatch.collate(batch, pad_id=base.pad_id, side="left")
    settings = {"max_new_tokens": 6, "min_new_tokens": 2, "no_repeat_ngram": 2, "eos_token_ids": [end]}
    assert generate(base, collated, [prompt], **settings) == expected  # type: ignore[arg-type]
    assert min(map(len, expected)) >= 2
    assert expected != free


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_a_length_penalty_weighs_short_texts_against_long_ones(name: str) -> None:
    """All texts of one token and the end, or of two, by brute force: log probability over length to the power."""
    base = host(name, torch.float64)
    (row,), prompt = inputs_of(base, "prefix-tuning", 1)
    first, end = next_log_probabilities(base, row, [], prompt), 5
    found = {}
    for penalty in (-8.0, 8.0):
        scored = {}
        for a in range(V):
            second = next_log_probabilities(base, row, [a], prompt)
            for b in range(V):
                if a != end:
                    text = (a,) if b == end else (a, b)
                    scored[text] = max(scored.get(text, -torch.inf), float(first[a] + second[b]) / 2**penalty)
        scored[()] = float(first[end])
        best = max(scored, key=lambda text: scored[text])
        batch = RowBatch.collate([row], pad_id=0)
        how = {"max_new_tokens": 2, "beams": V, "length_penalty": penalty, "eos_token_ids": [end]}
        found[penalty] = generate(base, batch, [prompt], **how)  # type: ignore[arg-type]
        assert found[penalty] == [list(best)]
    assert found[-8.0] != found[8.0]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(("name", "config"), pairs(["gpt2", "llama", "t5", "bart"]))
def test_company_and_padding_change_nothing(name: str, config: str, beams: int) -> None:
    base = host(name, torch.float64)
    batch, prompt = inputs_of(base, config, 3)
    other, others_prompt = inputs_of(base, "prefix-tuning", 1, seed=9)
    mixed = [Row(other[0].ids, None, 1), *batch, Row([7] * 15, None, 2)]
    alone = [written(base, [row], [prompt], beams=beams)[0] for row in batch]
    for side in ("left", "right"):
        together = written(base, mixed, [prompt, others_prompt, Prompt.empty()], side=side, beams=beams)
        assert together[1:4] == alone
        assert together[0] == written(base, other, [others_prompt], beams=beams)[0]


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_a_row_ends_at_an_end_token(name: str) -> None:
    base = host(name, torch.float64)
    batch, prompt = inputs_of(base, "prompt-tuning")
    free = written(base, batch, [prompt])
    end = free[0][2]
    stopped = written(base, batch, [prompt], ends=[end])
    assert stopped == [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in free]
    base.model.generation_config.eos_token_id = end
    collated = RowBatch.collate(batch, pad_id=0)
    assert generate(base, collated, [prompt], max_new_tokens=6) == stopped
    assert base.model.generation_config.eos_token_id == end  # and generating changes no settings
    assert base.model.generation_config.max_new_tokens is None


def test_a_checkpoints_own_beams_and_lengths_are_not_used(caplog: pytest.LogCaptureFixture) -> None:
    base = host("gpt2")
    batch, prompt = inputs_of(base, "head")
    expected = written(base, batch, [prompt])
    wild = transformers.GenerationConfig(
        do_sample=True, temperature=3.0, num_beams=2, max_length=3, repetition_penalty=9.0
    )
    base.model.generation_config = wild
    again = BaseHost.from_model(base.model, None, "causal")
    assert written(again, batch, [prompt]) == expected
    assert not caplog.records


def test_a_masked_base_does_not_write() -> None:
    base = host("bert")
    with pytest.raises(ValueError, match="does not write"):
        written(base, [Row([5], None, 0)], [Prompt.empty()])
