"""What `ptq artifact show` says of found words and of the words nearest to virtual tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.output.words import best_step, found_words, print_neighbours
from orchestrator.errors import NotFound
from orchestrator.paths import ArtifactPaths, write_json

TASK = {"labels": {"good": ["fine", "great"], "bad": ["awful"]}}


@pytest.mark.parametrize(("same", "said"), [(True, "{text} so very"), (False, "{text} so very (as text it is other")])
def test_the_words_that_were_found(same: bool, said: str) -> None:
    words = {"ids": [5, 6], "template": "{text} so very", "same_tokens": same}
    facts: dict[str, Any] = {"words": words, "recipe": {"task": TASK, "method": {"label_words": 2}}}
    found = found_words(facts)
    assert found["template"].startswith(said)
    assert found["labels"] == "good: fine great; bad: awful"
    facts["recipe"]["method"]["label_words"] = None
    assert list(found_words(facts)) == ["template"]
    assert found_words({"words": None}) == {}


def test_the_step_that_was_kept() -> None:
    assert best_step({"best": {"step": 40, "value": 0.71239}, "steps": 90}) == "step 40 of 90, 0.7124"
    assert best_step({"best": None, "steps": 90}) == ""


def test_neighbours_are_shown_with_what_they_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    near = [{"id": n, "token": word, "cosine": 1 - n / 10} for n, word in enumerate(["price", "food", "end"])]
    write_json(
        ArtifactPaths(tmp_path).neighbours,
        {
            "virtual_tokens": [{"number": number, "norm": 2.9609, "neighbours": near} for number in (1, 2, 3)],
            "duplicates": [{"id": 0, "token": "price", "numbers": [1, 2, 3]}],
            "label_words": {"food": [1, 2, 3], "awful": []},
        },
    )
    print_neighbours(tmp_path, "a1")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["TOKEN", "NORM", "NEAREST", "2", "3"]
    assert lines[1].split() == ["1", "2.96", "price", "1.00", "food", "0.90", "end", "0.80"]
    assert lines[4:] == [
        "tokens 1, 2, 3 are nearest to the same word, price",
        "label word awful: near none",
        "label word food: near tokens 1, 2, 3",
    ]
    with pytest.raises(NotFound, match="a2 has no virtual tokens"):
        print_neighbours(tmp_path / "elsewhere", "a2")
