"""Methods that train no virtual tokens: worked examples, the base's own weights, LM adaptation; and the best step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from training_fixtures import KINDS, make_run, recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator.errors import BadInput
from orchestrator.manifest import manifest_faults
from orchestrator.recipe.bases import read_base_facts
from orchestrator.recipe.schema import JobRecipe
from orchestrator.training.demonstrations import demonstrations
from orchestrator.training.order import batch_rows
from orchestrator.training.predict import Predictor
from orchestrator.training.rows import Rows
from orchestrator.tuning.export import export_peft

WORDS = {"type": "classify", "input": "the {text} is", "labels": {"warm": ["red"], "cold": ["black"]}, "separator": " "}
MASKED = {"type": "classify", "input": "the {text} is [MASK]", "labels": {"warm": ["red"], "cold": ["black"]}}


def untrained(method: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return recipe(method, **changes) | {"train": {"eval_batch_size": 4, "seeds": [3]}}


@pytest.mark.parametrize(("name", "task"), [("gpt2", WORDS), ("bert", MASKED), ("t5", WORDS | {"separator": None})])
def test_worked_examples_stand_before_every_input(
    name: str, task: dict[str, Any], bases: dict[str, Path], dataset: Path, tmp_path: Path
) -> None:
    one = untrained({"type": "prompt-design", "shots": 4, "separator": " and "}, task=task)
    run = make_run(tmp_path, [one], base=bases[name], dataset=dataset, kind=KINDS[name])
    assert run.train() == 0
    facts = run.artifact()
    shown = facts["demonstrations"]
    assert [row["label"] for row in shown] in (["warm", "cold"] * 2, ["cold", "warm"] * 2)
    assert all(row in list(Rows.open(dataset, "train")) for row in shown)
    assert (facts["steps"], facts["trained_parameters"], facts["length"]) == (0, 0, 0)
    assert run.losses() == {}
    predictor = Predictor.load(run.jobs[0].artifact(1), bases[name])
    rows = list(Rows.open(dataset, "validation"))
    right = [r["prediction"] == row["label"] for r, row in zip(predictor.predict(rows), rows, strict=True)]
    assert sum(right) / len(right) == pytest.approx(facts["metrics"]["validation"]["accuracy"])
    words = {"warm": "red", "cold": "black"}
    told = " and ".join(f"the {row['text']} is {words[row['label']]}" for row in shown)
    asked = predictor.loaded[0].objective.questions(rows[:1], tuned=True)[0].ids  # type: ignore[attr-defined]
    written = predictor.host.tokenizer.decode(asked, skip_special_tokens=True)
    assert written.startswith(f"{told} and the {rows[0]['text']}")


def test_the_seed_draws_the_examples(bases: dict[str, Path], dataset: Path) -> None:
    rows = Rows.open(dataset, "train")
    method = {"type": "prompt-design", "shots": 3}
    one, other = (JobRecipe.model_validate(recipe(method, train__seeds=[seed])) for seed in (1, 2))
    assert demonstrations(one, rows) == demonstrations(one, rows) != demonstrations(other, rows)
    assert len(demonstrations(one, rows)) == 3


def test_fine_tuning_is_a_plain_training_loop(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    """Against AdamW on transformers' own model, row by row."""
    one = recipe({"type": "fine-tuning"}, train__lr=1e-3, train__schedule="constant", train__clip=None)
    run = make_run(tmp_path, [one], base=bases["gpt2"], dataset=dataset)
    assert run.train() == 0
    model, tokenizer = AutoModelForCausalLM.from_pretrained(bases["gpt2"]), AutoTokenizer.from_pretrained(bases["gpt2"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    rows, losses = Rows.open(dataset, "train"), {}
    model.eval()
    for step in range(6):
        each = []
        for number in batch_rows(step, seed=1, rows=len(rows), batch_size=4):
            head, tail = tokenizer([f"the {rows[number]['text']}", rows[number]["target"]])["input_ids"]
            tail = [*tail[:3], 2]
            logits = model(torch.tensor([[*head, 1, *tail]])).logits[0, -len(tail) - 1 : -1]
            each.append(cross_entropy(logits, torch.tensor(tail), reduction="none"))
        loss = torch.cat(each).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[step + 1] = loss.item()
    assert run.losses() == pytest.approx(losses, rel=1e-4)
    trained = load_file(run.jobs[0].artifact(1) / "base.safetensors")
    assert set(trained) == {name for name, _ in model.named_parameters()}
    ids = torch.tensor([[5, 8, 9, 3, 1]])
    expected = model(ids).logits  # not the weights: those without a gradient (biases of keys) move by its rounding
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(trained[name])
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": {"type": "fine-tuning", "weights": "biases"}},
        {"method": {"type": "fine-tuning"}, "head": {"pooling": "cls"}},
        {"method": {"type": "p-tuning"}, "base_lr": 1e-3},
    ],
    ids=["biases", "all-with-head", "p-tuning-jointly"],
)
def test_what_was_trained_predicts_what_was_scored(
    changes: dict[str, Any], bases: dict[str, Path], dataset: Path, tmp_path: Path
) -> None:
    task: dict[str, Any] = {
        "type": "classify",
        "input": "{text}",
        "labels": ["warm", "cold"],
        "head": {"pooling": "cls"},
    }
    if "head" not in changes:
        task = MASKED | {"input": "the [P:2] {text} is [MASK]" if "base_lr" in changes else MASKED["input"]}
    one = recipe(changes["method"], task=task, train__lr=5e-3, train__base_lr=changes.get("base_lr"))
    run = make_run(tmp_path, [one], base=bases["bert"], dataset=dataset, kind="masked")
    assert run.train() == 0
    folder, facts = run.jobs[0].artifact(1), run.artifact()
    assert manifest_faults(folder) == []
    rows = list(Rows.open(dataset, "validation"))
    predicted = Predictor.load(folder, bases["bert"]).predict(rows)
    right = [r["prediction"] == row["label"] for r, row in zip(predicted, rows, strict=True)]
    assert sum(right) / len(right) == pytest.approx(facts["metrics"]["validation"]["accuracy"])
    before, after = load_file(bases["bert"] / "model.safetensors"), load_file(folder / "base.safetensors")
    moved = {name for name in after if name in before and not torch.equal(before[name], after[name])}
    assert moved
    if changes["method"].get("weights") == "biases":
        assert all(name.endswith("bias") for name in after)
    with pytest.raises(BadInput, match="has trained the base's own weights"):
        export_peft(folder, tmp_path / "out")
    assert facts["trained_parameters"] >= sum(tensor.numel() for tensor in after.values())


def test_the_baseline_of_a_trained_base_is_the_base_as_it_was(
    bases: dict[str, Path], dataset: Path, tmp_path: Path
) -> None:
    jobs = [
        recipe({"type": "fine-tuning"}, task=WORDS, train__lr=1e-2),
        untrained({"type": "prompt-design"}, task=WORDS),
    ]
    runs = [make_run(tmp_path / str(i), [one], base=bases["gpt2"], dataset=dataset) for i, one in enumerate(jobs)]
    assert [run.train() for run in runs] == [0, 0]
    tuned, plain = (run.artifact() for run in runs)
    assert tuned["baseline"] == plain["baseline"] == plain["metrics"]
    assert [s["base"] for s in tuned["samples"]] == [s["tuned"] for s in plain["samples"]]


@pytest.mark.parametrize("name", ["gpt2", "t5", "bert"])
def test_lm_adaptation_leaves_another_base(name: str, bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    one = recipe({"type": "lm-adapt"}, task={"type": "text", "input": "the {text}"}, train__lr=1e-2, train__steps=8)
    run = make_run(tmp_path, [one], base=bases[name], dataset=dataset, kind=KINDS[name])
    assert run.train() == 0
    facts = run.artifact()
    before, after = facts["baseline"]["validation"]["perplexity"], facts["metrics"]["validation"]["perplexity"]
    assert 1 < after < before
    assert manifest_faults(run.jobs[0].artifact(1)) == []
    assert "ptq" not in (run.jobs[0].artifact(1) / "base" / "config.json").read_text(encoding="utf-8")
    adapted = read_base_facts(run.jobs[0].artifact(1) / "base")
    assert adapted.origin is not None
    assert (adapted.origin["parent"], adapted.origin["steps"], adapted.kind) == ("tiny", 8, KINDS[name])
    with pytest.raises(BadInput, match="it is a base"):
        Predictor.load(run.jobs[0].artifact(1), bases[name])
    # It is a base like any other: untuned, it scores what the job scored.
    again = recipe({"type": "lm-adapt"}, task={"type": "text", "input": "the {text}"}, train__lr=1e-9, train__steps=1)
    second = make_run(tmp_path / "2", [again], base=run.jobs[0].artifact(1) / "base", dataset=dataset, kind=KINDS[name])
    assert second.train() == 0
    assert second.artifact()["baseline"]["validation"]["perplexity"] == pytest.approx(after, rel=1e-5)


def test_perplexity_is_that_of_transformers(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    one = recipe({"type": "lm-adapt"}, task={"type": "text"}, train__lr=1e-3, train__steps=1)
    run = make_run(tmp_path, [one], base=bases["gpt2"], dataset=dataset)
    assert run.train() == 0
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(bases["gpt2"]).eval(),
        AutoTokenizer.from_pretrained(bases["gpt2"]),
    )
    total, count = 0.0, 0
    for row in Rows.open(dataset, "validation"):
        ids = torch.tensor([[1, *tokenizer(row["text"])["input_ids"], 2]])
        with torch.no_grad():
            total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert run.artifact()["baseline"]["validation"]["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)


def test_the_best_evaluation_is_kept(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    """At a rate that makes the last step worse; stopped and resumed in between, it is the same."""
    changes = {"train__lr": 3.0, "train__steps": 8, "train__eval_every": 2, "train__keep": "best", "task": WORDS}
    one = recipe({"type": "prompt-tuning", "length": 3}, **changes)
    run = make_run(tmp_path / "a", [one], base=bases["gpt2"], dataset=dataset)
    assert run.train() == 0
    scored = {e["step"]: e["values"]["accuracy"] for e in run.events(kind="metric") if e["split"] == "validation"}
    best = max(scored, key=lambda step: (scored[step], -step))
    facts = run.artifact()
    assert facts["best"] == {"step": best, "value": scored[best]}
    assert facts["metrics"]["validation"]["accuracy"] == scored[best]
    shorter = make_run(
        tmp_path / "b",
        [recipe(one["method"], **(changes | {"train__patience": 1}))],
        base=bases["gpt2"],
        dataset=dataset,
    )
    assert shorter.train() == 0
    assert shorter.artifact()["steps"] <= facts["steps"]
