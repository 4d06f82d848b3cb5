"""Each objective against the same thing written out with plain transformers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.testing import assert_close
from training_fixtures import KINDS, recipe, said
from training_tokenizers import encoder
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from orchestrator.errors import BadData, BadRecipe
from orchestrator.recipe.schema import JobRecipe
from orchestrator.training.objectives import Objective, build_objective
from orchestrator.training.objectives.objective import Share
from orchestrator.training.objectives.scoring import LabelScoring
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning import BaseHost, Prompt, RowBatch, forward
from orchestrator.tuning.fast import Fast

AUTO = {"gpt2": AutoModelForCausalLM, "t5": AutoModelForSeq2SeqLM, "bert": AutoModelForMaskedLM}
ROWS = [
    {"text": "red cat and blue house", "target": "the river is warm", "label": "warm"},
    {"text": "stone", "target": "bird", "label": "cold"},
    {"text": "", "target": "a tree", "label": "warm"},
    {"text": "white bird and the black tree and red", "target": "", "label": "cold"},
]
METHOD = {"type": "prompt-tuning", "length": 2}
WORDS = {"type": "classify", "labels": {"warm": ["warm", "red"], "cold": ["cold and blue"]}, "separator": "is "}


class Made:
    """An objective on a base of ours, and transformers' own model and tokenizer of the same files."""

    def __init__(self, folder: Path, name: str, task: dict[str, Any]) -> None:
        raw = recipe(METHOD)
        raw["task"] = task
        self.recipe = JobRecipe.model_validate(raw)
        self.host = BaseHost.load(folder, kind=KINDS[name])  # type: ignore[arg-type]
        self.prompt = Prompt(torch.randn(2, self.host.embedding_width, generator=torch.Generator().manual_seed(3)))
        text = TextEncoder(self.host, slots="front", length=2, context=64)
        self.objective: Objective = build_objective(self.recipe, text)
        self.model = AUTO[name].from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        torch.manual_seed(5)
        self.head = self.objective.head(self.host)

    def loss(self) -> torch.Tensor:
        examples = [self.objective.example(row) for row in ROWS]
        batch = RowBatch.collate([example.row for example in examples], pad_id=0)
        output = forward(self.host, batch, [self.prompt], hidden=self.objective.reads_hidden)
        share = Share.of(output, 0, range(len(ROWS)), len(ROWS))
        return self.objective.loss_sum(share, examples, self.head) / sum(example.units for example in examples)

    def predictions(self, *, tuned: bool = True) -> list[str]:
        with torch.no_grad():
            return said(self.host, self.objective, self.prompt, self.head, ROWS, tuned=tuned)

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def embedded(self, ids: list[int]) -> torch.Tensor:
        """[1, 2 + len(ids), H]: the prompt in front."""
        assert self.prompt.embeddings is not None
        return torch.cat([self.prompt.embeddings, self.model.get_input_embeddings()(torch.tensor(ids))])[None]


def continued(made: Made, ids: list[int], target: list[int]) -> torch.Tensor:
    """[len(target)] losses of a causal base that goes on with `target` after prompt and `ids`."""
    logits = made.model(inputs_embeds=made.embedded(ids + target)).logits[0].float()
    return cross_entropy(logits[-len(target) - 1 : -1], torch.tensor(target), reduction="none")


def decoded(made: Made, ids: list[int], target: list[int]) -> torch.Tensor:
    """[len(target)] losses of an encoder-decoder base."""
    start = [made.model.config.decoder_start_token_id]
    logits = (
        made.model(inputs_embeds=made.embedded(ids), decoder_input_ids=torch.tensor([start + target[:-1]]))
        .logits[0]
        .float()
    )
    return cross_entropy(logits, torch.tensor(target), reduction="none")


GENERATE = {"type": "generate", "input": "the {text}", "target": "{target}", "max_new_tokens": 5}


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_generation_learns_the_target_and_its_end(name: str, bases: dict[str, Path]) -> None:
    made, bos, eos = Made(bases[name], name, GENERATE), 1, 2
    losses = []
    for row in ROWS:
        ids, target = made.ids(f"the {row['text']}"), [*made.ids(row["target"])[:4], eos]
        losses.append(continued(made, [*ids, bos], target) if name == "gpt2" else decoded(made, [*ids, eos], target))
    assert_close(made.loss(), torch.cat(losses).mean())


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_generation_writes_what_transformers_writes(name: str, beams: int, bases: dict[str, Path]) -> None:
    made, bos, eos = Made(bases[name], name, {**GENERATE, "beams": beams}), 1, 2
    expected = []
    for row in ROWS:
        ids = [*made.ids(f"the {row['text']}"), bos if name == "gpt2" else eos]
        found = made.model.generate(
            inputs_embeds=made.embedded(ids),
            attention_mask=torch.ones(1, len(ids) + 2),
            max_new_tokens=5,
            do_sample=False,
            num_beams=beams,
        )
        expected.append(made.tokenizer.decode(found[0], skip_special_tokens=True).strip())
    assert made.predictions() == expected


def test_writing_nothing_is_an_empty_text(bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(bases["gpt2"], "gpt2", GENERATE)
    inner = made.host.model.lm_head.forward

    def always_end(states: torch.Tensor) -> torch.Tensor:
        logits = inner(states)
        logits[..., 2] = 1e4
        return logits

    monkeypatch.setattr(made.host.model.lm_head, "forward", always_end)
    assert made.predictions() == [""] * len(ROWS)


def test_the_end_that_targets_are_trained_with_ends_a_text(bases: dict[str, Path]) -> None:
    """Though the base's generation settings name another one, as uer's GPT-2 and many chat models do."""
    made = Made(bases["gpt2"], "gpt2", {**GENERATE, "max_new_tokens": 9})
    made.host.model.generation_config.eos_token_id = 0
    inner = made.host.model.lm_head.forward
    made.host.model.lm_head.forward = lambda states: inner(states).index_fill(-1, torch.tensor([2]), 1e4)
    assert made.predictions() == [""] * len(ROWS)


def test_rows_with_one_input_are_one_input_with_several_references(bases: dict[str, Path]) -> None:
    made = Made(bases["gpt2"], "gpt2", GENERATE)
    pairs = [("cat", "red"), ("house", "blue"), ("cat", " green "), ("cat", "red")]
    rows = [{"text": text, "target": target} for text, target in pairs]
    assert made.objective.references(rows) == ([0, 1], [["red", "green", "red"], ["blue"]])


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_label_words_are_scored_by_their_mean_log_probability(name: str, bases: dict[str, Path]) -> None:
    made = Made(bases[name], name, {**WORDS, "input": "the {text}"})
    losses, expected = [], []
    for row in ROWS:
        means = {}
        for word, label in {"warm": "warm", "red": "warm", "cold and blue": "cold"}.items():
            ids = made.ids(f"the {row['text']}")
            if name == "gpt2":
                each = continued(made, [*ids, *made.ids("is")], made.ids(word))
            else:
                each = decoded(made, [*ids, 2], [*made.ids(word), 2])
            means[word] = each.mean().item(), label
            if word == {"warm": "warm", "cold": "cold and blue"}[row["label"]]:
                losses.append(each)
        expected.append(min(means.values())[1])
    assert_close(made.loss(), torch.cat(losses).mean())
    assert made.predictions() == expected


def test_a_separator_and_a_label_word_are_one_text() -> None:
    """` good` is one token of byte-level BPE; a lone space before `good` is a text that it never saw."""
    raw = recipe(METHOD)
    raw["task"] = {"type": "classify", "input": "{text}", "labels": {"p": "good", "n": "bad"}, "separator": " it was "}
    task, made = JobRecipe.model_validate(raw).task, encoder("gpt2")
    example = LabelScoring(task, made).example({"text": "the film", "label": "p"})  # type: ignore[arg-type]
    assert example.row.ids == made.tokens("the film it was good")
    assert example.row.labels == [-100] * (len(example.row.ids) - 1) + made.tokens(" good")
    assert example.units == 1


def test_label_words_without_a_separator_follow_the_input_at_once() -> None:
    raw = recipe(METHOD)
    raw["task"] = {"type": "classify", "input": "{text}", "labels": {"p": " good", "n": " bad"}}
    task, made = JobRecipe.model_validate(raw).task, encoder("gpt2")
    example = LabelScoring(task, made).example({"text": "the film was", "label": "n"})  # type: ignore[arg-type]
    assert example.row.ids == made.tokens("the film was bad")


def test_many_label_words_are_scored_a_batch_at_a_time(bases: dict[str, Path]) -> None:
    labels = {
        str(number): word for number, word in enumerate(["red", "green", "blue", "black", "white", "cat", "house"])
    }
    made = Made(bases["gpt2"], "gpt2", {"type": "classify", "input": "the {text}", "labels": labels})
    made.host.fast = Fast(pack=False)  # so that rows can be counted
    sizes = []
    made.host.model.register_forward_pre_hook(
        lambda _module, _args, inputs: sizes.append(len(inputs.get("inputs_embeds", []))), with_kwargs=True
    )
    made.predictions()
    assert max(sizes) <= len(ROWS)
    assert sum(sizes) == len(ROWS) * len(labels)


MASKED = {**WORDS, "labels": {"warm": ["warm", "red"], "cold": ["cold"]}, "input": "the {text} is [MASK] ."}


def test_a_verbalizer_takes_the_mean_of_its_words_logits_at_the_mask(bases: dict[str, Path]) -> None:
    made = Made(bases["bert"], "bert", {k: v for k, v in MASKED.items() if k != "separator"})
    losses, expected = [], []
    for row in ROWS:
        text = made.tokenizer(f"the {row['text']} is [MASK] .")["input_ids"]
        logits = made.model(inputs_embeds=made.embedded(text)).logits[0, 2 + text.index(made.tokenizer.mask_token_id)]
        warm, red, cold = logits[made.tokenizer.convert_tokens_to_ids(["warm", "red", "cold"])]
        scores = log_softmax(torch.stack([(warm + red) / 2, cold]), 0)
        losses.append(-scores[["warm", "cold"].index(row["label"])])
        expected.append(["warm", "cold"][int(scores.argmax())])
    assert_close(made.loss(), torch.stack(losses).mean())
    assert made.predictions() == expected


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_head_reads_the_pooled_text_without_its_virtual_tokens(pooling: str, bases: dict[str, Path]) -> None:
    task = {"type": "classify", "input": "the {text}", "labels": ["warm", "cold"], "head": {"pooling": pooling}}
    made = Made(bases["bert"], "bert", task)
    assert made.head is not None
    losses, expected = [], []
    for row in ROWS:
        text = made.tokenizer(f"the {row['text']}")["input_ids"]
        hidden = made.model.bert(inputs_embeds=made.embedded(text)).last_hidden_state[0, 2:]
        scores = made.head(hidden.mean(0) if pooling == "mean" else hidden[0])
        losses.append(cross_entropy(scores, torch.tensor(["warm", "cold"].index(row["label"]))))
        expected.append(["warm", "cold"][int(scores.argmax())])
    assert_close(made.loss(), torch.stack(losses).mean())
    assert made.predictions() == expected


def test_a_head_learns_soft_labels_flattened_by_their_temperature(bases: dict[str, Path]) -> None:
    """The student of PET's distillation at T = 2, as pet/utils.py writes it (distillation_loss)."""
    task = {"type": "classify", "input": "the {text}", "labels": ["warm", "cold"], "head": {}, "soft": "{p}"}
    made = Made(bases["bert"], "bert", task | {"temperature": 2})
    assert made.head is not None
    names, rows, losses = made.recipe.task.labels, [], []  # type: ignore[union-attr]
    for row, chance in zip(ROWS, (0.9, 0.5, 1.0, 0.2), strict=True):
        rows.append(row | {"p": f'{{"warm": {chance}, "cold": {1 - chance}}}'})
        flat = torch.tensor([{"warm": chance, "cold": 1 - chance}[name] ** 0.5 for name in names])
        hidden = made.model.bert(inputs_embeds=made.embedded(made.tokenizer(f"the {row['text']}")["input_ids"]))
        scores = log_softmax(made.head(hidden.last_hidden_state[0, 2]) / 2, 0)
        losses.append(kl_div(scores, flat / flat.sum(), reduction="sum") * 2**2)
    examples = [made.objective.example(row) for row in rows]
    output = forward(made.host, RowBatch.collate([e.row for e in examples], pad_id=0), [made.prompt], hidden=True)
    share = Share.of(output, 0, range(len(ROWS)), len(ROWS))
    assert_close(made.objective.loss_sum(share, examples, made.head), torch.stack(losses).sum())
    for wrong in ("no", '{"warm": 1}', '{"warm": 0, "cold": 0}', "[1, 2]"):
        with pytest.raises(BadData, match="not a JSON mapping"):
            made.objective.example(ROWS[0] | {"p": wrong})


@pytest.mark.parametrize(
    ("name", "labels", "what"),
    [
        ("bert", {"p": "Good", "n": "good"}, "same tokens"),
        ("bert", {"p": "marvellous", "n": "good"}, "not in the vocabulary"),
        ("bert", {"p": "good film", "n": "bad"}, "2 tokens on this base; its row"),
        ("t5", {"p": "猫", "n": "狗"}, "same tokens"),
    ],
)
def test_words_that_a_base_cannot_tell_apart_are_refused(name: str, labels: dict[str, str], what: str) -> None:
    raw = recipe({"type": "warp", "length": 1} if "tokens" in what and name == "bert" else METHOD)
    raw["task"] = {"type": "classify", "input": "{text} [MASK]" if name == "bert" else "{text}", "labels": labels}
    with pytest.raises(BadRecipe, match=what):
        build_objective(JobRecipe.model_validate(raw), encoder(name))


def test_a_verbalizer_word_is_the_one_of_running_text() -> None:
    """RoBERTa marks the space before a word: ` good` is a token, the start of a text is another."""
    raw = recipe(METHOD)
    raw["task"] = {"type": "classify", "input": "{text} [MASK]", "labels": {"p": "good", "n": "bad"}}
    made = encoder("roberta")
    objective = build_objective(JobRecipe.model_validate(raw), made)
    logits = torch.zeros(1, 700)
    logits[0, made.tokens(" good")[0]] = 5
    nothing: Any = SimpleNamespace()
    share = Share(logits, torch.tensor([0]), torch.tensor([0]), None, nothing, [0], 1)
    assert float(objective.loss_sum(share, [], None)) < 0.01


def test_a_label_that_the_recipe_does_not_name_is_bad_data(bases: dict[str, Path]) -> None:
    made = Made(bases["bert"], "bert", {k: v for k, v in MASKED.items() if k != "separator"})
    with pytest.raises(BadData, match="'lukewarm'"):
        made.objective.example({"text": "cat", "label": "lukewarm"})


@pytest.mark.parametrize("tuned", [True, False])
@pytest.mark.parametrize("task", [GENERATE, {**WORDS, "input": "{text}"}], ids=["generate", "classify"])
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_predictions_do_not_depend_on_the_batch(
    name: str, task: dict[str, Any], tuned: bool, bases: dict[str, Path]
) -> None:
    made = Made(bases[name], name, task)
    one_by_one = [said(made.host, made.objective, made.prompt, made.head, [row], tuned=tuned)[0] for row in ROWS]
    assert made.predictions(tuned=tuned) == one_by_one
