"""docs/reference/methods.md says what is so: every cell is run."""

from __future__ import annotations

from pathlib import Path

from matrix import METHODS, MODELS, page

from orchestrator.tuning import METHODS as TABLE

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "methods.md"


def test_every_method_works_or_is_refused_and_the_page_says_so() -> None:
    assert page() == REFERENCE.read_text(encoding="utf-8"), "run `make docs`"


def test_no_method_is_missing() -> None:
    assert {config["type"] for config, _ in METHODS.values()} == set(TABLE)
    assert len(MODELS) == 17
