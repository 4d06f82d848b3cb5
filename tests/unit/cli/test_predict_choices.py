"""`ptq predict` on rows that bring their own answers: which fields it asks for, what it refuses before it starts."""

from __future__ import annotations

from typing import Any

import pytest
from training_fixtures import recipe

from orchestrator.cli import predict
from orchestrator.errors import BadData, BadInput
from orchestrator.recipe.schema import JobRecipe

METHOD = {"type": "prompt-tuning", "length": 2}


def made(**task: Any) -> JobRecipe:
    return JobRecipe.model_validate(recipe(METHOD, task={"type": "classify", "input": "{text} [MASK]", **task}))


LIST = made(candidates="{list}", label="{right}")
PAIR = made(labels={"0": ["{one}"], "1": ["{two}", "none"]})
FIXED = made(labels={"0": ["a"], "1": ["b"]})


def test_the_right_answer_is_not_asked_for() -> None:
    assert predict._fields([LIST, PAIR, FIXED]) == ["text", "list", "one", "two"]
    several = recipe({"type": "pet", "patterns": ["{other}: {text} [MASK]"]}, task=FIXED.task.model_dump())
    del several["train"]["steps"], several["train"]["lr"]
    assert predict._fields([JobRecipe.model_validate(several)]) == ["text", "other"]


def test_a_bad_row_is_told_by_its_number() -> None:
    rows = [{"text": "a", "list": "b\nc"}, {"text": "a", "list": "[]"}]
    predict._refuse_choices([LIST, FIXED], rows[:1], "new.jsonl")
    with pytest.raises(BadData, match="no candidates") as caught:
        predict._refuse_choices([LIST, FIXED], rows, "new.jsonl")
    assert (caught.value.where, caught.value.hint) == ("new.jsonl, row 2", "mend the row; nothing was predicted")
    with pytest.raises(BadData, match="the word `x` stands under"):
        predict._refuse_choices([PAIR], [{"one": "x", "two": "x"}], "-")


def test_a_mean_needs_the_same_to_choose_from() -> None:
    for alike in ([LIST, LIST], [PAIR, PAIR], [PAIR, FIXED]):
        predict._refuse_ensemble("mean", alike)
    for unlike in ([LIST, PAIR], [LIST, made(candidates="{other}")]):
        with pytest.raises(BadInput, match="do not all choose among the same"):
            predict._refuse_ensemble("mean", unlike)
        predict._refuse_ensemble("vote", unlike)
