"""Heads, tags, spans and missing words on causal and encoder-decoder bases, against transformers' own models of the
same files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import ROWS, recipe_of_task, saved
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from training_fixtures import make_run, make_tokenizer, recipe, said
from training_tokenizers import encoder as encoder_of
from transformers import (
    AlbertModel,
    AttentionInterface,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertForPreTraining,
    BertModel,
)

from orchestrator.recipe.bases import read_base_facts
from orchestrator.recipe.fit import fit_faults
from orchestrator.recipe.schema import JobRecipe
from orchestrator.recipe.tasks import Tag
from orchestrator.training.job import build_prompt
from orchestrator.training.objectives import Objective, build_objective
from orchestrator.training.objectives.objective import Share
from orchestrator.training.objectives.tags import Tagging
from orchestrator.tuning import BaseHost, Prompt, RowBatch, forward

CLASS, WORD, SPAN, MISSING = "classify, by a head", "tag", "span", "cloze"


class Made:
    """A task on a base of ours without virtual tokens, and the words of its files."""

    def __init__(self, folder: Path, name: str, task: str) -> None:
        kind = saved(folder, name)
        method = "prompt-design" if task == MISSING else "head"
        raw = recipe_of_task(kind, "prompt-tuning", task).model_dump()
        raw["method"], raw["train"] = {"type": method}, {"steps": 1, "lr": 0.1} if method == "head" else {}
        recipe = JobRecipe.model_validate(raw)
        self.folder, self.kind = folder, kind
        self.host = BaseHost.load(folder, kind=kind)  # type: ignore[arg-type]
        text, method_of = build_prompt(recipe, self.host, context=96)
        self.prompt: Prompt = method_of.prompt()
        self.objective: Objective = build_objective(recipe, text)
        torch.manual_seed(3)
        self.head = self.objective.head(self.host)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def theirs(self, auto: Any) -> Any:
        """transformers' model; its own heads are named when they are put in place of."""
        return auto.from_pretrained(self.folder).eval()

    def loss(self) -> Tensor:
        """Of all rows in one batch."""
        examples = [self.objective.example(row) for row in ROWS]
        batch = RowBatch.collate([example.row for example in examples], pad_id=self.host.pad_id)
        output = forward(self.host, batch, [self.prompt], hidden=self.objective.reads_hidden)
        return self.objective.loss_sum(Share.of(output, 0, range(4), 4), examples, self.head)

    def answers(self) -> list[str]:
        with torch.no_grad():
            return said(self.host, self.objective, self.prompt, self.head, ROWS, tuned=True)

    def ids(self, text: str, special: bool = True) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    @property
    def linear(self) -> nn.Linear:
        """Of ours, without its bias, which GPT-2's and Llama's heads lack."""
        assert isinstance(self.head, nn.Linear)
        with torch.no_grad():
            self.head.bias.zero_()
        return self.head


def agree(ours: Tensor, theirs: Tensor, head: nn.Linear | None) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    if head is not None:
        for mine, other in zip(*(torch.autograd.grad(loss, [head.weight]) for loss in (ours, theirs)), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "BART", "T5 v1.1"])
def test_a_head_reads_what_transformers_classifiers_read(name: str, tmp_path: Path) -> None:
    made = Made(tmp_path, name, CLASS)
    head, model = made.linear, made.theirs(AutoModelForSequenceClassification)
    setattr(model, "score" if made.kind == "causal" else "classification_head", head)
    scores = torch.cat([model(torch.tensor([made.ids("the " + row["text"])])).logits for row in ROWS])
    labels = ["warm", "cold"]
    agree(made.loss(), cross_entropy(scores, torch.tensor([0, 1, 0, 1]), reduction="sum"), head)
    assert made.answers() == [labels[int(best)] for best in scores.argmax(-1)]


def test_a_job_that_reads_shares_a_run_with_one_that_writes(
    bases: dict[str, Path], dataset: Path, tmp_path: Path
) -> None:
    """In one forward of an encoder-decoder base one decoder is fed its targets, the other its text."""
    prompt = {"type": "prompt-tuning", "length": 2}
    task = {"type": "classify", "input": "the {text}", "labels": ["warm", "cold"], "head": {}}
    jobs = [recipe(prompt, train__steps=3), recipe(prompt, task=task, train__steps=3)]
    fused = make_run(tmp_path / "fused", jobs, base=bases["t5"], dataset=dataset, kind="seq2seq")
    assert fused.train() == 0
    for number, job in enumerate(jobs):
        alone = make_run(tmp_path / str(number), [job], base=bases["t5"], dataset=dataset, kind="seq2seq")
        assert alone.train() == 0
        assert fused.losses(number) == pytest.approx(alone.losses(), rel=1e-4)
        assert fused.artifact(number)["metrics"] == alone.artifact()["metrics"]


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "BART"])
def test_a_tag_is_read_at_its_word(name: str, tmp_path: Path) -> None:
    """Of BART at the decoder's state for it, which BartForQuestionAnswering reads; no model of theirs tags with it."""
    made = Made(tmp_path, name, WORD)
    head, model = made.linear, made.theirs(AutoModel if name == "BART" else AutoModelForTokenClassification)
    if name != "BART":
        setattr(model, "classifier" if name == "GPT-2" else "score", head)
    losses, expected = [], []
    for row in ROWS:
        found = model(torch.tensor([made.ids("the " + row["text"])]))
        scores = (head(found.last_hidden_state) if name == "BART" else found.logits)[0, 1:]
        words, tags = row["text"].split(), [["O", "X"].index(tag) for tag in row["tags"].split()]
        losses.append(cross_entropy(scores[: len(words)], torch.tensor(tags), reduction="sum"))
        expected.append(" ".join("OX"[int(best)] for best in scores[: len(words)].argmax(-1)))
    agree(made.loss(), torch.stack(losses).sum(), head)
    assert made.answers() == expected


def test_a_causal_base_tags_a_word_once_it_has_read_it() -> None:
    """Of the several tokens of a word the last; encoders and encoder-decoders take the first."""
    task = Tag.model_validate({"type": "tag", "labels": ["O", "X"]})
    row = {"tokens": "cathouse red", "tags": "O X"}
    for name, last in (("gpt2", True), ("roberta", False)):
        text = encoder_of(name)
        example = Tagging(task, text).example(row)
        first, second = (text.tokens(" " + word) for word in row["tokens"].split())
        assert len(first) > 1
        opening = example.row.ids.index(first[0])
        ends = (len(first) - 1, len(first) + len(second) - 1)
        assert example.places == tuple(opening + end for end in (ends if last else (0, len(first))))


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "BART", "T5 v1.1"])
def test_a_span_is_found_as_transformers_find_it(name: str, tmp_path: Path) -> None:
    made = Made(tmp_path, name, SPAN)
    model = made.theirs(AutoModelForQuestionAnswering)
    if name == "Llama":  # whose question answering calls its body otherwise than all its other models do
        model.transformer = made.theirs(AutoModel)
    head = made.linear
    model.qa_outputs = head
    losses = []
    for row in ROWS:
        question, context = made.ids("the " + row["text"], special=False), made.ids(row["text"], special=False)
        found = model(torch.tensor([[*question, *context, *([2] if made.kind == "seq2seq" else [])]]))
        inside = slice(len(question), len(question) + len(context))
        place = torch.tensor([row["text"].split().index(row["answer"])])
        ends = (found.start_logits[:, inside], found.end_logits[:, inside])
        losses.append(sum(cross_entropy(scores, place) for scores in ends) / 2)
    agree(made.loss(), torch.stack(losses).sum(), head)  # type: ignore[arg-type]


def test_without_an_answer_an_encoder_decoder_points_at_its_first_state(tmp_path: Path) -> None:
    made = Made(tmp_path, "BART", SPAN)
    objective: Any = made.objective
    objective._task = objective._task.model_copy(update={"unanswerable": True})
    example = objective.example(ROWS[0] | {"answer": "[]"})
    assert example.targets == (0, 0)
    assert example.places[:2] == (0, 3)  # `the red cat` is the question


@pytest.mark.parametrize("name", ["BART", "T5 v1.0", "T5 v1.1", "mT5"])
def test_a_missing_word_is_what_the_decoder_goes_on_with(name: str, tmp_path: Path) -> None:
    """BART's behind the text up to <mask>, as its documentation fills in; T5's behind <extra_id_0>."""
    made = Made(tmp_path, name, MISSING)
    model, special = made.theirs(AutoModelForSeq2SeqLM), "<mask>" if name == "BART" else "<extra_id_0>"
    mark, losses, expected = made.tokenizer.convert_tokens_to_ids(special), [], []
    for row in ROWS:
        ids, word = made.ids(f"the {row['text']} {special}"), made.ids(row["target"], special=False)
        assert ids.count(mark) == 1
        if name == "BART":
            logits = model(torch.tensor([ids])).logits[0, ids.index(mark)]
        else:
            logits = model(torch.tensor([ids]), labels=torch.tensor([[mark, *word]])).logits[0, 1]
        losses.append(cross_entropy(logits, torch.tensor(word[0])))
        expected.append(made.tokenizer.decode([int(logits.argmax())], skip_special_tokens=True).strip())
    agree(made.loss(), torch.stack(losses).sum(), None)
    assert made.answers() == expected


def test_a_verbalizer_on_t5_reads_behind_the_sentinel(tmp_path: Path) -> None:
    kind = saved(tmp_path, "T5 v1.1")
    recipe = recipe_of_task(kind, "prompt-design", "classify, at [MASK]")
    host = BaseHost.load(tmp_path, kind="seq2seq")
    text, method = build_prompt(recipe, host, context=None)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    expected = []
    for row in ROWS:
        ids = tokenizer(f"the {row['text']} <extra_id_0>")["input_ids"]
        fed = torch.tensor([[0, tokenizer.convert_tokens_to_ids("<extra_id_0>")]])
        logits = model(torch.tensor([ids]), decoder_input_ids=fed).logits[0, 1].detach()
        red, black = (float(logits[tokenizer.convert_tokens_to_ids(word)]) for word in ("red", "black"))
        expected.append("warm" if red >= black else "cold")
    assert said(host, build_objective(recipe, text), method.prompt(), None, ROWS, tuned=True) == expected


def test_a_text_that_spells_the_sentinel_is_text(tmp_path: Path) -> None:
    """Else a row could ask for what is missing at another place."""
    made = Made(tmp_path, "T5 v1.1", MISSING)
    example = made.objective.example(ROWS[0] | {"text": "red <extra_id_0> cat"})
    mark = made.tokenizer.convert_tokens_to_ids("<extra_id_0>")
    assert example.row.ids.count(mark) == 1
    assert example.row.ids[-2:] == [mark, 2]
    assert example.row.decoder_ids == [0, mark]


@pytest.mark.parametrize("architecture", [BertForPreTraining, BertModel, AlbertModel], ids=lambda kind: kind.__name__)
def test_p_tuning_v2_reads_through_the_pooler_of_the_checkpoint(architecture: Any, tmp_path: Path) -> None:
    """THUDM/P-tuning-v2, model/sequence_classification.py: classifier(outputs[1]), behind a prefix in each layer."""
    words = make_tokenizer("bert")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    torch.manual_seed(0)
    narrow = {"embedding_size": 16} if architecture is AlbertModel else {}
    model = architecture(architecture.config_class(vocab_size=len(words), **shape, **narrow)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    task = {"type": "classify", "input": "the {text}", "labels": ["warm", "cold"], "head": {"pooling": "pooler"}}
    method = {"type": "p-tuning-v2", "length": 3, "dropout": 0}
    raw = {"name": "n", "base": "b", "dataset": "d", "task": task, "method": method, "train": {"steps": 1, "lr": 0.1}}
    recipe = JobRecipe.model_validate(raw)
    facts = read_base_facts(tmp_path)
    assert fit_faults(recipe, facts, list(ROWS[0]), {"train": 4}) == []
    assert fit_faults(recipe, replace(facts, pooler=False), list(ROWS[0]), {"train": 4})
    host = BaseHost.load(tmp_path, kind="masked")
    text, tuned = build_prompt(recipe, host, context=96)
    objective = build_objective(recipe, text)
    head = objective.head(host)
    assert isinstance(head, nn.Linear)
    assert set(head.state_dict()) == {"weight", "bias"}, "the pooler is the base's, and no part of what is kept"
    body = model.bert if architecture is BertForPreTraining else model
    keys_values = tuned.prompt().keys_values["encoder"]
    scores = []
    for row in ROWS:
        ids = torch.tensor([words("the " + row["text"])["input_ids"]])
        states = _with_prefix(body, ids, keys_values)
        dense = body.pooler if architecture is AlbertModel else body.pooler.dense
        scores.append(head(torch.tanh(dense(states[:, 0]))))
        if architecture is not AlbertModel:  # and so their own pooler does
            torch.testing.assert_close(body.pooler(states), torch.tanh(dense(states[:, 0])))
    examples = [objective.example(row) for row in ROWS]
    batch = RowBatch.collate([example.row for example in examples], pad_id=host.pad_id)
    output = forward(host, batch, [tuned.prompt()], hidden=True)
    ours = objective.loss_sum(Share.of(output, 0, range(4), 4), examples, head)
    theirs = cross_entropy(torch.cat(scores), torch.tensor([0, 1, 0, 1]), reduction="sum")
    trained = [head.weight, next(tuned.parameters())]
    for mine, other in zip(*(torch.autograd.grad(loss, trained) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def _with_prefix(body: Any, ids: Tensor, keys_values: Tensor) -> Tensor:
    """Last states of transformers' encoder, its attention written out with n keys and values in front of each layer."""
    n = keys_values.shape[3]
    turns = iter(keys_values)

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        own = next(turns)
        key, value = torch.cat([own[0][None], key], 2), torch.cat([own[1][None], value], 2)
        weights = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(-1)
        return (weights @ value).transpose(1, 2), None

    AttentionInterface.register("written_out", attention)
    body.set_attn_implementation("written_out")
    positions = torch.arange(n, n + ids.shape[1])[None]
    found: Tensor = body(ids, position_ids=positions).last_hidden_state
    return found
