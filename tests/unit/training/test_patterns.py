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
from training_fixtures import KINDS, make_run, recipe, said
from transformers import AutoModelForMaskedLM, AutoTokenizer

from orchestrator.recipe.schema import JobRecipe
from orchestrator.training import label_search, search
from orchestrator.training.job import build_prompt
from orchestrator.training.objectives import build_objective
from orchestrator.training.objectives.objective import Share
from orchestrator.training.order import batch_rows, mixed_seed
from orchestrator.training.predict import Predictor
from orchestrator.training.rows import Rows
from orchestrator.training.search import TriggerSearch
from orchestrator.training.stop import STOPPED_EXIT_CODE
from orchestrator.tuning import BaseHost, Prompt, RowBatch, forward
from orchestrator.tuning.methods.autoprompt import AutoPrompt

WORDS = {"warm": ["red"], "cold": ["black"]}
FOUND = {"type": "classify", "input": "[T:2] {text} [T] is [MASK]", "labels": WORDS}


def searching(**changes: Any) -> dict[str, Any]:
    one = recipe({"type": "autoprompt", "candidates": 100}, task=FOUND, **changes)
    del one["train"]["lr"]
    return one


def test_with_every_word_tried_each_step_takes_the_best(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    """Replayed on transformers' own model, with the words written as tokens: no prompt, no gradient. The loss is the
    paper's: of the label's word among the whole vocabulary."""
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
            target = {"warm": red, "cold": black}[rows[number]["label"]]
            total += float(cross_entropy(logits, torch.tensor(target)))
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
    assert facts["trained_parameters"] == 0
    assert facts["words"]["same_tokens"]
    # The words written out, with nothing trained at all, score the same.
    plain = recipe({"type": "prompt-design"}, task=FOUND | {"input": facts["words"]["template"]})
    del plain["train"]["steps"], plain["train"]["lr"]
    again = make_run(tmp_path / "plain", [plain], base=bases["bert"], dataset=dataset, kind="masked")
    assert again.train() == 0
    assert again.artifact()["metrics"] == facts["metrics"]
    assert [s["tuned"] for s in again.artifact()["samples"]] == [s["tuned"] for s in facts["samples"]]


def test_the_words_that_a_step_tries_are_hotflips(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-e_w . (gradient of the mean loss at the slot) for each word of the vocabulary, by transformers' own model."""
    tried: list[tuple[int, list[int]]] = []
    promising = AutoPrompt.promising

    def recorded(self: AutoPrompt, slot: int, *rest: Any) -> list[int]:
        found = promising(self, slot, *rest)
        tried.append((slot, found))
        return found

    monkeypatch.setattr(AutoPrompt, "promising", recorded)
    one = searching(train__steps=1)
    one["method"]["candidates"] = 4
    run = make_run(tmp_path, [one], base=bases["bert"], dataset=dataset, kind="masked")
    assert run.train() == 0
    ((slot, found),) = tried
    assert slot == drawn(0)
    model = AutoModelForMaskedLM.from_pretrained(bases["bert"]).eval()
    tokenizer, rows = AutoTokenizer.from_pretrained(bases["bert"]), Rows.open(dataset, "train")
    table = model.get_input_embeddings().weight
    red, black, mask = tokenizer.convert_tokens_to_ids(["red", "black", "[MASK]"])
    total = torch.zeros(table.shape[1])
    for number in batch_rows(0, seed=1, rows=len(rows), batch_size=4):
        text = tokenizer(rows[number]["text"], add_special_tokens=False)["input_ids"]
        ids = [4, mask, mask, *text, mask, *tokenizer("is", add_special_tokens=False)["input_ids"], mask, 5]
        embedded = table[ids].detach().requires_grad_(True)
        logits = model(inputs_embeds=embedded[None]).logits[0, len(ids) - 2]
        cross_entropy(logits, torch.tensor({"warm": red, "cold": black}[rows[number]["label"]])).backward()
        assert embedded.grad is not None
        total += embedded.grad[[1, 2, 3 + len(text)][slot]] / 4
    gains = {
        word: -float(table[word].detach() @ total)
        for word in range(len(tokenizer))
        if word not in {red, black, *tokenizer.all_special_ids}
    }
    assert found == sorted(gains, key=lambda word: -gains[word])[:4]


def test_a_slot_that_is_still_a_mask_is_no_word(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, [searching(train__steps=1)], base=bases["bert"], dataset=dataset, kind="masked")
    assert run.train() == 0
    assert not run.artifact()["words"]["same_tokens"]  # one step has looked at one slot of three


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


@pytest.mark.parametrize(("parts", "most"), [(1, 4), (3, 2), (1, 1)])
def test_words_are_scored_in_as_many_parts_as_memory_takes(
    parts: int, most: int, bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_run(tmp_path / "a", [searching()], base=bases["bert"], dataset=dataset, kind="masked")
    assert whole.train() == 0
    one = searching()
    one["train"] = {**one["train"], "accumulation": parts}
    sizes: list[int] = []
    asked = search.forward

    def small(host: Any, batch: Any, *args: Any) -> Any:
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory (in a test)")
        sizes.append(len(batch))
        return asked(host, batch, *args)

    monkeypatch.setattr(search, "forward", small)
    made = make_run(tmp_path / "b", [one], base=bases["bert"], dataset=dataset, kind="masked")
    assert made.train() == 0
    assert max(sizes) == most
    assert made.artifact()["words"] == whole.artifact()["words"]
    assert made.losses() == pytest.approx(whole.losses(), rel=1e-5)


def test_a_search_whose_single_row_does_not_fit_ends_alone(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory (in a test)")

    monkeypatch.setattr(search, "forward", full)
    neighbour = {**searching(), "method": {"type": "warp"}}
    neighbour["task"] = {**neighbour["task"], "input": "[P:2] {text} [MASK]"}
    neighbour["train"] = {**neighbour["train"], "lr": 0.1}
    made = make_run(tmp_path, [searching(), neighbour], base=bases["bert"], dataset=dataset, kind="masked")
    assert made.train() == 1
    (last,) = made.events(0, "failed")
    assert (last["reason"], last["alone"]) == ("cuda_oom", True)
    assert made.events(1, "artifact")


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
        found = said(single[0].host, objective, Prompt.empty(), None, ROWS, tuned=True)
        expected = []
        for row in ROWS:
            total = torch.zeros(2)
            for made in single:
                inner = build_objective(made.recipe, encoder)
                (answer,) = inner.chosen(  # type: ignore[attr-defined]
                    torch.cat([_lines(made, inner, question) for question in inner.questions([row], tuned=False)]),  # type: ignore[attr-defined]
                    [row],
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
    del one["train"]["lr"]
    if base_lr is None:
        del one["train"]["steps"]
    run = make_run(tmp_path, [one], base=bases["bert"], dataset=dataset, kind=KINDS["bert"])
    assert run.train() == 0
    facts = run.artifact()
    assert facts["steps"] == (6 if base_lr else 0)
    rows = list(Rows.open(dataset, "validation"))
    said = [r["prediction"] for r in Predictor.load(run.jobs[0].artifact(1), bases["bert"]).predict(rows)]
    assert [s["tuned"] for s in facts["samples"]] == said[:5]


WARPED = {
    "type": "classify",
    "input": "[P:2] the {text} [P:1] is [MASK] [P:2]",
    "labels": {"warm": ["red", "green"], "cold": "black"},
}


def test_warp_scores_its_vectors_at_the_mask(bases: dict[str, Path]) -> None:
    """Written out with the parts of transformers' own BERT; loss and gradients of both kinds of vectors."""
    host = BaseHost.load(bases["bert"], kind="masked")
    one = JobRecipe.model_validate(recipe({"type": "warp"}, task=WARPED))
    encoder, method = build_prompt(one, host, context=64)
    objective = build_objective(one, encoder)
    head = objective.head(host)
    assert head is not None
    model, tokenizer = (
        AutoModelForMaskedLM.from_pretrained(bases["bert"]).eval(),
        AutoTokenizer.from_pretrained(bases["bert"]),
    )
    table = model.get_input_embeddings().weight.detach()
    words = [tokenizer.convert_tokens_to_ids(names) for names in (["red", "green"], ["black"])]
    labels = list(one.task.labels)  # type: ignore[union-attr]
    vectors = torch.stack([table[ids].mean(0) for ids in (words if labels[0] == "warm" else words[::-1])])
    virtual = table[tokenizer.mask_token_id].repeat(5, 1)
    torch.testing.assert_close(head.weight.detach(), vectors)
    torch.testing.assert_close(method.prompt().embeddings.detach(), virtual)  # type: ignore[union-attr]
    vectors.requires_grad_(True)
    virtual.requires_grad_(True)
    expected = torch.zeros(())
    for row in ROWS:
        texts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f"the {row['text']}", "is")]
        cls, mask, sep = table[[4]], table[[tokenizer.mask_token_id]], table[[5]]
        parts = [cls, virtual[:2], table[texts[0]], virtual[2:3], table[texts[1]], mask, virtual[3:], sep]
        hidden = model.bert(inputs_embeds=torch.cat(parts)[None]).last_hidden_state[0]
        at = sum(len(part) for part in parts[:5])
        scores = vectors @ model.cls.predictions.transform(hidden[at])
        expected = expected + cross_entropy(scores, torch.tensor(labels.index(row["label"])))
    expected.backward()
    examples = [objective.example(row) for row in ROWS]
    batch = RowBatch.collate([example.row for example in examples], pad_id=0)
    share = Share.of(forward(host, batch, [method.prompt()]), 0, range(len(ROWS)), len(ROWS))
    loss = objective.loss_sum(share, examples, head)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.weight.grad, vectors.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.inputs.grad, virtual.grad, rtol=1e-4, atol=1e-5)  # type: ignore[attr-defined]


def test_warp_from_the_job_to_its_use(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    """Beside another job of the same run: its label vectors see its own rows alone."""
    jobs = [
        recipe({"type": "prompt-tuning", "length": 2}, task=WARPED | {"input": "{text} [MASK]"}),
        recipe({"type": "warp"}, task=WARPED),
    ]
    run = make_run(tmp_path / "a", jobs, base=bases["bert"], dataset=dataset, kind="masked")
    alone = make_run(tmp_path / "b", jobs[1:], base=bases["bert"], dataset=dataset, kind="masked")
    assert [run.train(), alone.train()] == [0, 0]
    assert run.losses(1) == pytest.approx(alone.losses(0), rel=1e-4)
    facts = run.artifact(1)
    rows = list(Rows.open(dataset, "validation"))
    said = [r["prediction"] for r in Predictor.load(run.jobs[1].artifact(1), bases["bert"]).predict(rows)]
    assert [s["tuned"] for s in facts["samples"]] == said[:5]


def test_label_words_are_found_once(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that goes on elsewhere, where sums are rounded otherwise, goes on with its own words."""
    one = recipe({"type": "autoprompt", "candidates": 5, "label_words": 3}, task=FOUND, train__steps=2)
    del one["train"]["lr"]
    made = {"base": bases["bert"], "dataset": dataset, "kind": "masked"}
    first = make_run(tmp_path, [one], **made)
    assert first.train() == 0
    kept = first.artifact()
    monkeypatch.setattr(label_search, "_searched", lambda *_: {"warm": ["stone"], "cold": ["tree"]})
    second = make_run(tmp_path, [one], attempt=2, **made)
    assert second.train() == 0
    found = second.artifact(attempt=2)
    assert found["recipe"]["task"]["labels"] == kept["recipe"]["task"]["labels"]
    assert found["metrics"] == kept["metrics"]
    other = make_run(tmp_path, [{**one, "name": "other"}], attempt=3, **made)  # its words are not those of this job
    assert other.train() == 0
    assert other.artifact(attempt=3)["recipe"]["task"]["labels"] == {"warm": ["stone"], "cold": ["tree"]}


def test_label_words_that_the_data_choose(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    """The regression's words, against scikit-learn's on states of transformers' own model."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    one = recipe({"type": "autoprompt", "candidates": 5, "label_words": 3}, task=FOUND, train__steps=2)
    del one["train"]["lr"]
    run = make_run(tmp_path, [one], base=bases["bert"], dataset=dataset, kind="masked")
    assert run.train() == 0
    chosen = run.artifact()["recipe"]["task"]["labels"]
    model, tokenizer = (
        AutoModelForMaskedLM.from_pretrained(bases["bert"]).eval(),
        AutoTokenizer.from_pretrained(bases["bert"]),
    )
    states, labels, mask = [], [], tokenizer.mask_token_id
    for row in Rows.open(dataset, "train"):
        text = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        ids = [4, mask, mask, *text, mask, *tokenizer("is", add_special_tokens=False)["input_ids"], mask, 5]
        with torch.no_grad():
            hidden = model.bert(torch.tensor([ids])).last_hidden_state[0, -2]
            states.append(model.cls.predictions.transform(hidden).numpy())
        labels.append(row["label"])
    inputs = np.array(states)
    fitted = LogisticRegression(C=1e3, max_iter=2000).fit((inputs - inputs.mean(0)) / inputs.std(0), labels)
    direction = fitted.coef_[0] / inputs.std(0)  # of the second label, `warm`
    scores = model.get_input_embeddings().weight.detach().numpy() @ direction
    plain = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
    ranked = [tokenizer.decode([i]) for i in sorted(plain, key=lambda i: scores[i])]
    assert set(chosen) == {"warm", "cold"}
    assert all(len(words) == 3 for words in chosen.values())
    assert set(chosen["cold"]) & set(ranked[:4])
    assert set(chosen["warm"]) & set(ranked[-4:])
    assert not set(chosen["cold"]) & set(ranked[-8:])
