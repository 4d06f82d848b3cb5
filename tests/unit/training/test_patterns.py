"""AutoPrompt's search and PET's patterns against the same thing written out."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from test_objectives import ROWS, Made
from torch.nn.functional import cross_entropy
from training_fixtures import KINDS, make_run, recipe
from transformers import AutoModelForMaskedLM, AutoTokenizer

from orchestrator.recipe.schema import JobRecipe
from orchestrator.training.job import build_prompt
from orchestrator.training.objectives import build_objective
from orchestrator.training.objectives.objective import Share
from orchestrator.training.order import batch_rows, mixed_seed
from orchestrator.training.predict import Predictor
from orchestrator.training.rows import Rows
from orchestrator.training.search import TriggerSearch
from orchestrator.training.stop import STOPPED_EXIT_CODE
from orchestrator.tuning import BaseHost, Prompt, RowBatch, forward

WORDS = {"warm": ["red"], "cold": ["black"]}
FOUND = {"type": "classify", "input": "[T:2] {text} [T] is [MASK]", "labels": WORDS}


def searching(**changes: Any) -> dict[str, Any]:
    one = recipe({"type": "autoprompt", "candidates": 100}, task=FOUND, **changes)
    del one["train"]["lr"]
    return one


def test_with_every_word_tried_each_step_takes_the_best(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    """Replayed on transformers' own model, with the words written as tokens: no prompt, no gradient."""
    run = make_run(tmp_path, [searching()], base=bases["bert"], dataset=dataset, kind="masked")
    assert run.train() == 0
    facts, rows = run.artifact(), Rows.open(dataset, "train")
    model, tokenizer = (
        AutoModelForMaskedLM.from_pretrained(bases["bert"]).eval(),
        AutoTokenizer.from_pretrained(bases["bert"]),
    )
    red, black, mask = tokenizer.convert_tokens_to_ids(["red", "black", "[MASK]"])
    forbidden = {red, black, *tokenizer.all_special_ids}

    def loss(words: list[int], step: int) -> float:
        total = 0.0
        for number in batch_rows(step, seed=1, rows=len(rows), batch_size=4):
            text = tokenizer(rows[number]["text"], add_special_tokens=False)["input_ids"]
            after = tokenizer("is", add_special_tokens=False)["input_ids"]
            ids = [4, *words[:2], *text, words[2], *after, mask, 5]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, ids.index(mask, len(ids) - 2)]
            target = ["warm", "cold"].index(rows[number]["label"])
            total += float(cross_entropy(logits[[red, black]], torch.tensor(target)))
        return total

    words, slots = [mask] * 3, []
    for step in range(6):
        tried = {}
        for slot in range(3):
            for token in set(range(len(tokenizer))) - forbidden:
                candidate = [token if i == slot else word for i, word in enumerate(words)]
                tried[slot, token] = loss(candidate, step + 1)
        now = loss(words, step + 1)
        best = {slot: min((v, t) for (s, t), v in tried.items() if s == slot) for slot in range(3)}
        moves = {slot: token for slot, (value, token) in best.items() if value < now}
        slots.append(moves)
        # Which slot a step looks at is drawn: follow the one that the job's own draw names.
        slot = drawn(step)
        if slot in moves:
            words[slot] = moves[slot]
    assert facts["words"]["ids"] == words
    spelled = tokenizer.convert_ids_to_tokens(words)
    assert facts["words"]["template"] == f"{spelled[0]} {spelled[1]} {{text}} {spelled[2]} is [MASK]"
    # The words written out, with nothing trained at all, score the same.
    plain = recipe({"type": "prompt-design"}, task=FOUND | {"input": facts["words"]["template"]})
    del plain["train"]["steps"], plain["train"]["lr"]
    again = make_run(tmp_path / "plain", [plain], base=bases["bert"], dataset=dataset, kind="masked")
    assert again.train() == 0
    assert again.artifact()["metrics"] == facts["metrics"]
    assert [s["tuned"] for s in again.artifact()["samples"]] == [s["tuned"] for s in facts["samples"]]


def drawn(step: int) -> int:
    return random.Random(mixed_seed(1, 4, step)).randrange(3)


def test_the_most_promising_words_are_those_of_the_gradient(bases: dict[str, Path]) -> None:
    host = BaseHost.load(bases["bert"], kind="masked")
    _, method = build_prompt(JobRecipe.model_validate(searching()), host, context=64)
    table = host.model.get_input_embeddings().weight.detach()
    gradient = torch.randn(table.shape[1], generator=torch.Generator().manual_seed(1))
    order = [int(i) for i in (-(table @ gradient)).argsort(descending=True)]
    allowed = [i for i in order if i not in {order[0], host.tokenizer.mask_token_id}]
    assert method.promising(1, gradient, 5, [order[0]]) == allowed[:5]  # type: ignore[attr-defined]


def test_a_stopped_search_goes_on_where_it_was(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_run(tmp_path / "a", [searching()], base=bases["bert"], dataset=dataset, kind="masked")
    assert whole.train() == 0
    broken = make_run(tmp_path / "b", [searching()], base=bases["bert"], dataset=dataset, kind="masked")
    with monkeypatch.context() as patch:
        step = TriggerSearch.step

        def step_and_stop(self: Any, *args: Any) -> None:
            step(self, *args)
            if int(self.state[self.param_groups[0]["params"][0]]["step"]) == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(TriggerSearch, "step", step_and_stop)
        assert broken.train() == STOPPED_EXIT_CODE
    again = make_run(tmp_path / "b", [searching()], base=bases["bert"], dataset=dataset, kind="masked", attempt=2)
    assert again.train() == 0
    assert again.events(kind="started")[1]["resumed_from"] == 3
    assert again.artifact(attempt=2)["words"] == whole.artifact()["words"]
    assert again.losses() == whole.losses()


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_patterns_are_an_ensemble_of_mean_scores(name: str, bases: dict[str, Path]) -> None:
    end = " [MASK]" if name == "bert" else " "
    task = {"type": "classify", "labels": {"warm": ["red", "green"], "cold": ["black"]}, "input": "the {text} is" + end}
    patterns = ["{text} and the" + end, "a {text}" + end]
    single = [Made(bases[name], name, task | {"input": text}) for text in [task["input"], *patterns]]
    raw = recipe({"type": "pet", "patterns": patterns}, task=task)
    del raw["train"]["steps"], raw["train"]["lr"]
    one = JobRecipe.model_validate(raw)
    encoder, _ = build_prompt(one, single[0].host, context=64)
    objective = build_objective(one, encoder)
    with torch.no_grad():
        found = objective.predict(single[0].host, Prompt.empty(), None, ROWS, tuned=True)
        expected = []
        for row in ROWS:
            total = torch.zeros(2)
            for made in single:
                inner = build_objective(made.recipe, encoder)
                (answer,) = inner.chosen(  # type: ignore[attr-defined]
                    torch.cat([_lines(made, inner, question) for question in inner.questions([row], tuned=False)])  # type: ignore[attr-defined]
                )
                total += torch.tensor([answer.probabilities[label] for label in ("warm", "cold")]).log()
            expected.append(["warm", "cold"][int(total.argmax())])
    assert found == expected
    rows = objective.usable(ROWS)
    assert len(rows) == 3 * len(ROWS)
    ids = [objective.example(rows[number]).row.ids for number in range(3)]
    assert len({tuple(row) for row in ids}) == 3


def _lines(made: Made, objective: Any, question: Any) -> torch.Tensor:
    output = forward(made.host, RowBatch.collate([question], pad_id=0), [Prompt.empty()])
    return objective.measured(Share.of(output, 0, [0], 1), None)  # type: ignore[no-any-return]


@pytest.mark.parametrize("base_lr", [None, 1e-3])
def test_patterns_from_the_job_to_their_use(
    base_lr: float | None, bases: dict[str, Path], dataset: Path, tmp_path: Path
) -> None:
    task = {"type": "classify", "input": "the {text} is [MASK]", "labels": WORDS}
    one = recipe({"type": "pet", "patterns": ["{text} [MASK]"]}, task=task, train__base_lr=base_lr)
    if base_lr is None:
        del one["train"]["steps"], one["train"]["lr"]
    run = make_run(tmp_path, [one], base=bases["bert"], dataset=dataset, kind=KINDS["bert"])
    assert run.train() == 0
    facts = run.artifact()
    assert facts["steps"] == (6 if base_lr else 0)
    rows = list(Rows.open(dataset, "validation"))
    said = [r["prediction"] for r in Predictor.load(run.jobs[0].artifact(1), bases["bert"]).predict(rows)]
    assert [s["tuned"] for s in facts["samples"]] == said[:5]
