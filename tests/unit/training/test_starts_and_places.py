"""What a recipe says of starts and places, from the job to the artifact and to its use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_fixtures import KINDS, make_run, recipe

from orchestrator.manifest import manifest_faults
from orchestrator.paths import read_json
from orchestrator.recipe.schema import JobRecipe
from orchestrator.training.job import build_prompt
from orchestrator.training.predict import Predictor
from orchestrator.training.rows import Rows
from orchestrator.tuning import BaseHost

WORDS = {"type": "classify", "input": "the {text} is ", "labels": {"warm": ["red"], "cold": ["blue cat", "black"]}}
PROMPT = {"type": "prompt-tuning", "length": 3}


def built(bases: dict[str, Path], name: str, method: dict[str, Any], **task: Any) -> Any:
    host = BaseHost.load(bases[name], kind=KINDS[name])  # type: ignore[arg-type]
    one = JobRecipe.model_validate(recipe(method, **task))
    return (*build_prompt(one, host, context=64), host)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (PROMPT, [-1, -2, -3, 4, 12, 5]),
        (PROMPT | {"placement": "after-bos"}, [4, -1, -2, -3, 12, 5]),
    ],
    ids=["before", "after"],
)
def test_in_front_of_the_opening_token_or_behind_it(
    method: dict[str, Any], expected: list[int], bases: dict[str, Path]
) -> None:
    encoder, _, host = built(bases, "bert", method)
    word = host.tokenizer.convert_ids_to_tokens(12)
    assert host.tokenizer(word)["input_ids"] == [4, 12, 5]
    assert encoder.input_ids("{text}", {"text": word}, limit=10) == expected
    assert encoder.input_ids("{text}", {"text": word}, limit=10, tuned=False) == [4, 12, 5]


def test_the_tasks_label_words_are_the_start(bases: dict[str, Path]) -> None:
    method = PROMPT | {"init": {"type": "labels"}}
    _, made, host = built(bases, "gpt2", method, task=WORDS)
    table = host.model.get_input_embeddings().weight.detach()
    red, blue, cat, black = host.tokenizer("red blue cat black")["input_ids"]
    expected = torch.stack([table[red], (table[blue] + table[cat]) / 2, table[black]])
    torch.testing.assert_close(made.prompt().embeddings.detach(), expected)


METHODS: list[dict[str, Any]] = [
    PROMPT | {"placement": "after-bos", "init": {"type": "labels"}},
    PROMPT | {"reparameterization": {"type": "residual", "hidden": 8, "shared": False}},
    {"type": "p-tuning-v2", "length": 2},
]


@pytest.mark.parametrize("method", METHODS, ids=["after-bos", "residual", "p-tuning-v2"])
def test_an_artifact_predicts_what_training_scored(
    method: dict[str, Any], bases: dict[str, Path], dataset: Path, tmp_path: Path
) -> None:
    one = recipe(method, task=WORDS | {"input": "the {text} is [MASK]", "labels": ["warm", "cold"]}, train__steps=12)
    run = make_run(tmp_path / "run", [one], base=bases["bert"], dataset=dataset, kind="masked")
    assert run.train() == 0
    folder = run.jobs[0].artifact(1)
    assert manifest_faults(folder) == []
    facts = run.artifact()
    rows = list(Rows.open(dataset, "validation"))
    predicted = [row["prediction"] for row in Predictor.load(folder, bases["bert"]).predict(rows)]
    right = [said == row["label"] for said, row in zip(predicted, rows, strict=True)]
    assert sum(right) / len(right) == pytest.approx(facts["metrics"]["validation"]["accuracy"])
    assert [s["tuned"] for s in facts["samples"]] == predicted[:5]
    assert (folder / "neighbours.json").exists() == (method["type"] == "prompt-tuning")
    if method["type"] == "prompt-tuning":
        report = read_json(folder / "neighbours.json")
        assert [len(one["neighbours"]) for one in report["virtual_tokens"]] == [5, 5, 5]
        assert set(report["label_words"]) == {"warm", "cold"}
    kept = ["embeddings"] if method["type"] == "prompt-tuning" else ["keys_values.encoder"]
    assert list(load_file(folder / "prompt.safetensors")) == kept  # and no network


def test_an_infix_writes_what_training_scored(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    one = recipe({"type": "prefix-tuning", "length": 3, "placement": "infix"}, train__lr=0.3)
    run = make_run(tmp_path / "run", [one], base=bases["gpt2"], dataset=dataset)
    assert run.train() == 0
    rows = list(Rows.open(dataset, "validation"))[:5]
    samples = run.artifact()["samples"]
    assert [s["input"] for s in samples] == [f"the {row['text']}" for row in rows]
    predicted = [row["prediction"] for row in Predictor.load(run.jobs[0].artifact(1), bases["gpt2"]).predict(rows)]
    assert predicted == [s["tuned"] for s in samples]
    assert predicted != [s["base"] for s in samples]


def test_a_job_starts_from_anothers_artifact(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    source = make_run(tmp_path / "source", [recipe(PROMPT)], base=bases["gpt2"], dataset=dataset)
    assert source.train() == 0
    init = {"type": "prompt", "path": str(source.jobs[0].artifact(1))}
    _, made, _ = built(bases, "gpt2", PROMPT | {"init": init})
    expected = load_file(source.jobs[0].artifact(1) / "prompt.safetensors")["embeddings"]
    assert torch.equal(made.prompt().embeddings.detach(), expected)
    target = make_run(tmp_path / "t", [recipe(PROMPT | {"init": init})], base=bases["gpt2"], dataset=dataset)
    assert target.train() == 0
    assert target.losses()[1] < source.losses()[1]
