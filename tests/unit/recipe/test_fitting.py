"""What `ptq base show` says of the methods agrees with the table that is run on every model."""

from __future__ import annotations

from matrix import METHODS, models

from orchestrator.recipe.fitting import fitting


def test_it_agrees_with_the_table_of_methods() -> None:
    found = {name: fitting(model.facts) for name, model in models(["GPT-2", "BERT", "T5 v1.1"]).items()}
    known = {method.partition(",")[0] for method in METHODS}
    assert set(found["GPT-2"]) == known - {"warp"}
    assert set(found["BERT"]) == known
    assert set(found["T5 v1.1"]) == known - {"p-tuning-v2"}
    assert "generate" in found["GPT-2"]["prefix-tuning"]
    assert "generate" not in found["BERT"]["prefix-tuning"]
    assert {tuple(methods["head"]) for methods in found.values()} == {("classify by a head", "tag", "span")}
    assert "cloze" in found["GPT-2"]["prompt-tuning"]
    assert found["T5 v1.1"]["warp"] == ["classify by words"]
