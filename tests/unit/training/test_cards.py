"""A run works on the cards that were leased for it, or not at all."""

from __future__ import annotations

import pytest

from orchestrator.training.cards import WrongCards, check_cards


def test_the_leased_cards_in_their_order() -> None:
    check_cards(["GPU-aa", "GPU-bb"], ["aa", "BB"])  # NVML and torch write them differently
    check_cards([])  # a run on the CPU has none


@pytest.mark.parametrize("seen", [[], ["aa"], ["bb", "aa"], ["aa", "cc"], ["aa", "bb", "cc"]])
def test_any_other_card_ends_the_run_before_it_touches_one(seen: list[str]) -> None:
    with pytest.raises(WrongCards, match="leased were GPU-aa, GPU-bb"):
        check_cards(["GPU-aa", "GPU-bb"], seen)


def test_without_a_card_torch_sees_none() -> None:
    with pytest.raises(WrongCards, match="torch sees none"):
        check_cards(["GPU-aa"])
