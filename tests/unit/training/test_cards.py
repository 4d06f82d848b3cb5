"""A run works on the cards that were leased for it, or not at all."""

from __future__ import annotations

import pytest
import torch

from orchestrator.training import cards
from orchestrator.training.cards import WrongCards, check_a_card, check_cards


def test_the_leased_cards_in_their_order() -> None:
    check_cards(["GPU-aa", "GPU-bb"], ["aa", "BB"])  # NVML and torch write them differently
    check_cards([])  # a run on the CPU has none


@pytest.mark.parametrize("seen", [[], ["aa"], ["bb", "aa"], ["aa", "cc"], ["aa", "bb", "cc"]])
def test_any_other_card_ends_the_run_before_it_touches_one(seen: list[str]) -> None:
    with pytest.raises(WrongCards, match="leased were GPU-aa, GPU-bb"):
        check_cards(["GPU-aa", "GPU-bb"], seen)


def test_without_a_card_torch_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)  # also on a machine with cards
    with pytest.raises(WrongCards, match="torch sees none"):
        check_cards(["GPU-aa"])


def test_it_is_said_why_torch_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build without CUDA, a driver that is too old for the build, cards that are hidden."""

    def too_old() -> None:
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by ..."
        )

    monkeypatch.setattr(cards, "visible", lambda: [])
    monkeypatch.setattr("torch.version.cuda", None)
    with pytest.raises(WrongCards, match=r"torch sees none\n .* is a build without CUDA; docs/howto/gpus.md says"):
        check_cards(["GPU-aa"])
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.init", too_old)
    with pytest.raises(WrongCards, match=r"is built for CUDA 13.0, and the driver .*too old \(found version 11040\)"):
        check_a_card([])
    monkeypatch.setattr("torch.cuda.init", lambda: None)
    with pytest.raises(WrongCards, match="or a container hides the cards"):
        check_a_card([])
    assert cards.seen() == {"torch": torch.__version__, "built_for": "13.0", "gpus": [], "why_none": cards.why_none()}
