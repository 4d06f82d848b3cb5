"""WARP's label vectors and AutoPrompt's choices against their released code, written out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from matrix import ROWS, saved
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn.functional import cross_entropy, gelu, softmax
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast

from orchestrator.recipe.bases import read_base_facts
from orchestrator.recipe.fit import fit_faults
from orchestrator.recipe.methods import AutoPrompt
from orchestrator.recipe.schema import JobRecipe
from orchestrator.recipe.tasks import Classify, Cloze
from orchestrator.training import label_search
from orchestrator.training.job import build_prompt
from orchestrator.training.objectives import build_objective
from orchestrator.training.objectives.objective import Share
from orchestrator.training.search import forbidden_words
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning import BaseHost, RowBatch, forward

CLOSE: Any = {"rtol": 1e-5, "atol": 1e-5}


def job(**method: Any) -> JobRecipe:
    placed = "{text} [MASK]" if method.get("length") == 0 else "[P:2] {text} [P] [MASK]"
    task = {"type": "classify", "input": placed, "labels": {"warm": ["red"], "cold": ["black"]}}
    raw = {"name": "n", "base": "b", "dataset": "d", "task": task, "method": {"type": "warp", **method}}
    return JobRecipe.model_validate(raw | {"train": {"steps": 1, "lr": 0.1}})


def roberta(folder: Path) -> Any:
    """With numbers in its biases, which are 0 at the start."""
    saved(folder, "RoBERTa")
    model = AutoModelForMaskedLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("method", [{}, {"vectors": "random"}, {"bias": False}, {"length": 0}], ids=str)
def test_warp_is_the_released_code(method: dict[str, Any], tmp_path: Path) -> None:
    """YerevaNN/WARP, arp/injector.py and arp/models.py at their newest, with on_logits: pre_decoder_layer_norm."""
    model, recipe = roberta(tmp_path), job(**method)
    assert fit_faults(recipe, read_base_facts(tmp_path), list(ROWS[0]), {"train": 4}) == []
    host = BaseHost.load(tmp_path, kind="masked")
    text, tuned = build_prompt(recipe, host, context=90)
    objective: Any = build_objective(recipe, text)
    words, table = host.tokenizer, model.roberta.embeddings.word_embeddings
    torch.manual_seed(4)
    head = objective.head(host)
    # ArpClassifier.__init__: torch's own start, or that of each class's word; the embedder is tied to the decoder
    torch.manual_seed(4)
    classification_layer = nn.Linear(32, 2, bias=method.get("bias", True))
    if "vectors" not in method:
        with torch.no_grad():
            for class_idx, token_idx in enumerate(words.convert_tokens_to_ids(["red", "black"])):
                classification_layer.weight[class_idx] = table.weight[token_idx]
                if classification_layer.bias is not None:
                    classification_layer.bias[class_idx] = model.lm_head.bias[token_idx]
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), classification_layer.parameters(), strict=True))
    # ArpInjector: as [MASK] (`prompt_better_init: <mask>`), each at its slots
    mask, count = words.mask_token_id, 0 if method.get("length") == 0 else 3
    prompts = nn.Parameter(table.weight[[mask] * count].detach().clone())
    logits = []
    for row in ROWS:
        body = words(row["text"], add_special_tokens=False)["input_ids"]
        ids = [words.cls_token_id, *([-1, -2, *body, -3] if count else body), mask, words.sep_token_id]
        embedded = torch.stack([prompts[-i - 1] if i < 0 else table.weight[i] for i in ids])
        hidden = model.roberta(inputs_embeds=embedded[None]).last_hidden_state[0, ids.index(mask)]
        logits.append(classification_layer(model.lm_head.layer_norm(gelu(model.lm_head.dense(hidden)))))
    theirs = cross_entropy(torch.stack(logits), torch.tensor([0, 1, 0, 1]), reduction="sum")
    examples = [objective.example(row) for row in ROWS]
    batch = RowBatch.collate([example.row for example in examples], pad_id=host.pad_id)
    share = Share.of(forward(host, batch, [tuned.prompt()]), 0, range(4), 4)
    torch.testing.assert_close(objective.measured(share, head), torch.stack(logits), **CLOSE)
    ours = objective.loss_sum(share, examples, head)
    mine = torch.autograd.grad(ours, [*tuned.parameters(), *head.parameters()])
    kept = [prompts] if count else []
    others = torch.autograd.grad(theirs, [*kept, *classification_layer.parameters()])
    for one, other in zip(mine, others, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_label_vectors_of_before_they_had_a_bias_are_read(tmp_path: Path) -> None:
    saved(tmp_path, "BERT")
    host = BaseHost.load(tmp_path, kind="masked")
    text, _ = build_prompt(job(), host, context=90)
    head = build_objective(job(), text).head(host)
    assert isinstance(head, nn.Linear)
    head.load_state_dict({"weight": torch.ones(2, 32)})
    assert torch.equal(head.bias, torch.zeros(2))


def test_label_words_are_scored_as_the_released_code_scores_them(tmp_path: Path) -> None:
    """ucinlp/autoprompt, label_search.py: the top k of softmax, over the labels, of projection x word embeddings."""
    saved(tmp_path, "BERT")
    host = BaseHost.load(tmp_path, kind="masked")
    text = TextEncoder(host, slots="none", length=0, context=90)
    projection = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    scores = torch.matmul(projection, host.model.cls.predictions.decoder.weight.transpose(0, 1))
    expected = []
    for row in softmax(scores, dim=0):
        _, top = row.topk(len(row))
        plain = [int(i) for i in top if int(i) not in host.tokenizer.all_special_ids]  # theirs may name [PAD]
        expected.append(host.tokenizer.convert_ids_to_tokens(plain[:2]))
    assert label_search._best_words(host, text, projection, 2) == expected


def test_autoprompt_s_loss_and_answers_are_those_of_the_released_code(tmp_path: Path) -> None:
    """ucinlp/autoprompt, create_trigger.py: get_loss, and AccuracyFn's predictions; several words a label."""
    saved(tmp_path, "RoBERTa")
    host = BaseHost.load(tmp_path, kind="masked")
    known = [word for word in host.tokenizer.get_vocab() if word.isalpha()]
    words = {"warm": known[:3], "cold": known[3:5]}
    task = {"type": "classify", "input": "{text} [T:2] [MASK]", "labels": words}
    raw = {"name": "n", "base": "b", "dataset": "d", "task": task, "method": {"type": "autoprompt"}}
    recipe = JobRecipe.model_validate(raw | {"train": {"steps": 1}})
    text, _ = build_prompt(recipe, host, context=90)
    objective: Any = build_objective(recipe, text)
    torch.manual_seed(3)
    logits, labels = torch.randn(5, host.vocab_size) * 3, torch.tensor([0, 1, 1, 0, 1])
    ids = [[host.tokenizer.get_vocab()[word] for word in its] for its in words.values()]
    padded = torch.tensor([one + [0] * (3 - len(one)) for one in ids])
    logp = torch.log_softmax(logits, dim=-1)

    def target_logp(label_ids: torch.Tensor) -> torch.Tensor:
        found = logp.gather(-1, label_ids) - 1e32 * label_ids.eq(0).to(logp)
        return torch.logsumexp(found, dim=-1)

    share: Any = SimpleNamespace(logits=logits, labels=labels)
    torch.testing.assert_close(objective.loss_sum(share, [], None), -target_logp(padded[labels]).sum(), **CLOSE)
    each = torch.stack([target_logp(one.expand(5, -1)) for one in padded], dim=-1)
    answers = objective.chosen(objective.measured(share, None), [{}] * 5)
    assert [one.text for one in answers] == [["warm", "cold"][i] for i in each.argmax(-1).tolist()]


def byte_level() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "<mask>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["in Paris and Rome red Élan élan XRed"] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", mask_token="<mask>")


def plain_words() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["[UNK]", "[MASK]"])
    made.train_from_iterator(["in Paris and Rome red Élan élan A b"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", mask_token="[MASK]")


def released_filter(tokenizer: PreTrainedTokenizerFast, label_ids: set[int], *, gpt2: bool) -> set[int]:
    """create_trigger.py, `--filter`; `gpt2`: isinstance(tokenizer, GPT2Tokenizer), as RoBERTa's is too."""

    def isupper(idx: int) -> bool:
        decoded = tokenizer.decode([idx])
        if gpt2:
            return bool(decoded[0] == " " and decoded[1:2].isupper())
        return bool(decoded[0].isupper())

    filtered = set(label_ids)
    for word, idx in tokenizer.get_vocab().items():
        if len(word) > 1 and (idx in tokenizer.all_special_ids or isupper(idx)):
            filtered.add(idx)
    return filtered


@pytest.mark.parametrize("kind", ["byte-level", "words"])
def test_words_are_filtered_as_by_the_released_code(kind: str) -> None:
    """The labels (of LAMA those of all training rows), special tokens, capitals."""
    tokenizer = byte_level() if kind == "byte-level" else plain_words()
    host: Any = SimpleNamespace(kind="masked", tokenizer=tokenizer)
    text = TextEncoder(host, slots="none", length=0, context=None)
    cloze = Cloze.model_validate({"type": "cloze", "input": "{sub} [MASK]", "target": "{obj}"})
    rows = [{"sub": "in", "obj": "red"}]
    red = {token for word in ("red", " red") for token in text.tokens(word)}
    found = forbidden_words(AutoPrompt(type="autoprompt", proper_names=False), cloze, text, tokenizer, rows)
    assert found == released_filter(tokenizer, red, gpt2=kind == "byte-level")
    names = {tokenizer.decode([token]).strip() for token in found}
    assert {"Paris", "Rome", "Élan"} <= names
    assert not {"in", "élan", "A"} & names
    special = set(tokenizer.all_special_ids)
    assert forbidden_words(AutoPrompt(type="autoprompt"), cloze, text, tokenizer, rows) == red | special
    labels = Classify.model_validate({"type": "classify", "input": "{sub} [MASK]", "labels": {"1": "in", "0": "and"}})
    words = {token for word in ("in", " in", "and", " and") for token in text.tokens(word)}
    assert forbidden_words(AutoPrompt(type="autoprompt"), labels, text, tokenizer, rows) == words | special
