"""What a row offers to choose from, and every way in which it may not."""

from __future__ import annotations

import pytest

from orchestrator.errors import BadData
from orchestrator.tasks.choices import Choices, names_fields

COPA = Choices({"0": ["{one}"], "1": ["{two}", "the other"]}, None, "{label}")
LIST = Choices({}, "{entities}", "{answers}", "{true}")


def test_words_with_fields_in_them_are_templates_and_others_stand_for_themselves() -> None:
    assert COPA.offered({"one": " a {b}", "two": "c [MASK]"}) == {"0": [" a {b}"], "1": ["c [MASK]", "the other"]}
    assert COPA.right({"label": " 1 "}, ["0", "1"]) == ["1"]
    assert (COPA.read, COPA.judged) == (("one", "two"), ("label",))
    assert [names_fields(word) for word in ("{a}", "a {b} c", "{", "{{a}}", "a}", "[MASK]", "")] == [
        True, True, False, False, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("text", ['["New York", "Rome"]', " New York \n\n Rome\n", '[" New York","Rome "]'])
def test_candidates_are_a_list_or_lines(text: str) -> None:
    assert LIST.offered({"entities": text}) == {"New York": ["New York"], "Rome": ["Rome"]}
    assert (LIST.read, LIST.judged) == (("entities",), ("answers", "true"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Rome", ["Rome"]),
        ('["Rome", "Oslo", "Rome"]', ["Rome", "Oslo"]),
        ('[{"text": "Oslo", "start": 3}]', ["Oslo"]),
        ("", "no right answer"),
        ("[]", "no right answer"),
        ('["Rome", "Paris"]', r"`Paris` is not among what it can be chosen from \(Rome, Oslo\)"),
    ],
)
def test_right_are_one_or_several_of_them(text: str, found: list[str] | str) -> None:
    row = {"answers": text}
    if isinstance(found, list):
        assert LIST.right(row, ["Rome", "Oslo"]) == found
        return
    with pytest.raises(BadData, match=found):
        LIST.right(row, ["Rome", "Oslo"])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "no candidates"),
        ("[]", "no candidates"),
        ('["a", ""]', "an empty candidate"),
        ('["a", "b", " a"]', "the candidate `a` twice"),
        ("a\nb\na", "the candidate `a` twice"),
        ('["a", ["b"]]', "no list of texts"),
        ('["a", "b"', "no list of texts"),
    ],
)
def test_lists_that_nobody_can_choose_from(text: str, what: str) -> None:
    with pytest.raises(BadData, match=what):
        LIST.offered({"entities": text})


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"one": "a", "two": " "}, "label `1` has an empty word"),
        ({"one": "a", "two": "a"}, "the word `a` stands under `0` and `1`"),
        ({"one": "the other", "two": "a"}, "`the other`"),
        ({"one": "a"}, "no field `two`"),
    ],
)
def test_words_that_nobody_can_choose_from(row: dict[str, str], what: str) -> None:
    with pytest.raises(BadData, match=what):
        COPA.offered(row)


def test_whether_an_answer_holds() -> None:
    told = {"true": True, "Yes": True, "1": True, "false": False, " no ": False, "0": False}
    assert {text: LIST.holds({"true": text}) for text in told} == told
    assert COPA.holds({})
    with pytest.raises(BadData, match="`perhaps` does not say"):
        LIST.holds({"true": "perhaps"})
    assert [LIST.unlabelled({"answers": a, "true": b}) for a, b in (("x", "true"), ("", "true"), ("x", ""))] == [
        False, True, True,
    ]  # fmt: skip
