"""From a row's fields to token ids, on every kind of tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_tokenizers import KINDS, encoder, tokenizer

from orchestrator.errors import BadData, BadRecipe

ALL = sorted(KINDS)
FAR = 10_000


@pytest.mark.parametrize("name", ALL)
def test_a_plain_row_is_what_the_tokenizer_makes_of_it(name: str) -> None:
    made, text = tokenizer(name), "the film was good"
    ids = encoder(name).input_ids("{text}", {"text": text}, limit=FAR)
    whole = made(text)["input_ids"]
    # A causal base gets no closing tokens: its text goes on.
    assert ids == whole[: len(ids)]
    assert len(ids) == len(whole) or KINDS[name] == "causal"


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("text", ["the <mask> cat", "bad </s> good", "[MASK] [SEP] a", "<|endoftext|>", "<s><pad>"])
def test_special_tokens_in_a_row_or_a_template_stay_text(name: str, text: str) -> None:
    made, plain = tokenizer(name), encoder(name)
    special = set(made.all_special_ids) - {plain.unknown}
    assert not special & set(plain.tokens(text))
    bare = plain.input_ids("{text}", {"text": ""}, limit=FAR)
    by_row = plain.input_ids("{text}", {"text": text}, limit=FAR)
    by_template = plain.input_ids(text.replace("[", r"\["), {}, limit=FAR)
    assert by_row == by_template
    assert [i for i in by_row if i in special] == [i for i in bare if i in special][: len(by_row)] or name == "gpt2"


def test_slots_and_the_mask_stand_where_the_template_says() -> None:
    made, placed = tokenizer("bert"), encoder("bert", slots="template", length=3)
    ids = placed.input_ids("[P:2] {text} was [MASK] [P:1] .", {"text": "the film"}, limit=FAR)
    words = ["[CLS]", "the", "film", "was", "[MASK]", ".", "[SEP]"]
    cls, the, film, was, mask, dot, sep = made.convert_tokens_to_ids(words)
    assert ids == [cls, -1, -2, the, film, was, mask, -3, dot, sep]
    assert encoder("bert", length=2).input_ids("{text}", {"text": "the"}, limit=FAR) == [-1, -2, cls, the, sep]


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_long_row_loses_the_end_of_its_field_and_nothing_of_the_template(name: str) -> None:
    made, context = tokenizer(name), 24
    cut = encoder(name, slots="template", length=5, context=context)
    template = "[P:4] {text} it was [MASK] and good [P:1]"
    ids = cut.input_ids(template, {"text": "the red cat " * 500}, limit=FAR)
    assert len(ids) <= context
    assert len(ids) > context - 4
    assert [i for i in ids if i < 0] == [-1, -2, -3, -4, -5]
    assert ids.count(cut.mask) == 1
    text = made.decode([i for i in ids if i >= 0 and i != cut.mask], skip_special_tokens=True)
    assert " ".join(text.split()).startswith("the red cat")
    assert " ".join(text.split()).endswith("it was and good")


def test_the_longest_field_is_cut_first() -> None:
    both = encoder("bert").input_ids("{a} and {b}", {"a": "the film", "b": "cat " * 99}, limit=10)
    made = tokenizer("bert")
    assert made.decode(both) == "[CLS] the film and" + " cat" * 7 + " [SEP]"


def test_a_template_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(BadData, match="longer than the base's context"):
        encoder("bert", context=5).input_ids("the film was {text}", {"text": "good"}, limit=FAR, after=1)


@pytest.mark.parametrize("name", ALL)
@given(words=st.integers(0, 40), limit=st.integers(1, 30), context=st.integers(12, 40), length=st.integers(0, 5))
def test_a_row_never_exceeds_its_limits(name: str, words: int, limit: int, context: int, length: int) -> None:
    made = ENCODERS[name, length, context]
    behind, after = [0, 0], 3
    ids = made.input_ids("{text}", {"text": "cat " * words}, limit=limit, behind=behind, after=after)
    assert len(ids) + after <= context
    assert sum(i >= 0 for i in ids) <= limit + len(SPECIAL_AROUND[name]) + len(behind)
    assert ids[-2:] == behind


ENCODERS = {
    (name, length, context): encoder(name, length=length, context=context)
    for name in ALL
    for length in range(6)
    for context in range(12, 41)
}
SPECIAL_AROUND = {name: tokenizer(name)("").input_ids for name in ALL}


@pytest.mark.parametrize("name", ALL)
def test_an_empty_row_still_gives_the_base_a_token(name: str) -> None:
    for slots in ("front", "none"):
        ids = encoder(name, slots=slots).input_ids("{text}", {"text": ""}, limit=FAR)
        assert ids
        assert min(ids) >= 0


@pytest.mark.parametrize("name", ALL)
def test_the_untuned_base_reads_the_same_text(name: str) -> None:
    made, row = encoder(name, slots="template", length=4, context=16), {"text": "the red cat " * 9}
    tuned = made.input_ids("[P:4]{text}", row, limit=FAR)
    untuned = made.input_ids("[P:4]{text}", row, limit=FAR, tuned=False)
    assert untuned == [token for token in tuned if token >= 0]


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_a_decoders_target_opens_and_ends_as_the_tokenizer_writes_it(name: str) -> None:
    made = tokenizer(name)
    assert encoder(name).decoder_text("the cat") == made("the cat")["input_ids"]
    short = encoder(name).decoder_text("the cat " * 9, limit=5)
    assert short == encoder(name).decoder_text("the cat " * 9)[:5]
    assert made.eos_token_id not in short  # it does not end there
    fits = encoder(name).decoder_text("the cat")
    assert encoder(name).decoder_text("the cat", limit=len(fits)) == fits
    assert encoder(name).decoder_text("the cat", limit=len(fits) - 1) == fits[:-1]


def test_a_tokenizer_without_an_end_mark_is_a_fault_of_the_recipe() -> None:
    with pytest.raises(BadRecipe, match="no end-of-sequence token"):
        _ = encoder("bert").eos
