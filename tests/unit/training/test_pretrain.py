"""Pretraining makes a base that transformers loads and that has learned its documents."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, T5Tokenizer

from orchestrator.data.store import SplitWriter
from orchestrator.recipe.bases import read_base_facts
from orchestrator.recipe.pretrain import PretrainRecipe, PretrainSchedule
from orchestrator.training import pretrain as module
from orchestrator.training.pretrain import learning_rate, pretrain
from orchestrator.training.small_tokenizers import SENTINELS
from orchestrator.training.span_corruption import corrupted, noise_mask
from orchestrator.tuning import BaseHost


def rows(folder: Path, texts: list[tuple[str, str]]) -> Path:
    folder.mkdir()
    writer = SplitWriter(folder / "train.arrow", ["text", "target"])
    for text in texts:
        writer.add(list(text))
    writer.close()
    return folder


def recipe(kind: str = "gpt2", **train: object) -> PretrainRecipe:
    return PretrainRecipe.model_validate(
        {
            "pretrain": "tiny",
            "dataset": "tiny",
            "architecture": {"type": kind, "layers": 1, "hidden": 32, "heads": 2, "context": 24},
            "vocab": 280,
            "documents": [{"input": "{text}", "target": "{target}"}],
            "train": {"steps": 80, "batch_size": 8, "lr": 0.01, "warmup": 10, **train},
        }
    )


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_base_is_pretrained_the_same_each_time(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = rows(tmp_path / "data", [("red", "cat"), ("blue", "bird")])
    for name in ("one", "two"):
        pretrain(recipe(kind), data, tmp_path / name)
    assert "step 79 of 80" in capsys.readouterr().out
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    assert BaseHost.load(tmp_path / "one", kind="causal").has_lm_head
    model, tokenizer = (auto.from_pretrained(tmp_path / "one") for auto in (AutoModelForCausalLM, AutoTokenizer))
    for text, target in (("red", "cat"), ("blue", "bird")):
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.bos_token_id]])
        found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)[0]
        assert tokenizer.decode(found[ids.shape[1] :], skip_special_tokens=True) == target
        assert found[-1] == tokenizer.eos_token_id


def test_a_row_that_spells_an_end_mark_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = rows(tmp_path / "data", [("<|eos|>", "<|pad|>")])
    documents: list[list[int]] = []
    padded = module.pad_sequence

    def pad(tensors: list[torch.Tensor], **options: object) -> torch.Tensor:
        documents.extend(tensor.tolist() for tensor in tensors)
        return padded(tensors, **options)

    monkeypatch.setattr(module, "pad_sequence", pad)
    pretrain(recipe(steps=1, warmup=0), data, tmp_path / "base")
    special = set(AutoTokenizer.from_pretrained(tmp_path / "base").all_special_ids)
    assert documents
    assert all(sum(token in special for token in document) <= 2 for document in documents)


def test_the_rate_warms_up_and_decays_to_a_tenth() -> None:
    schedule = PretrainSchedule(steps=100, lr=1.0, warmup=10)
    rates = [learning_rate(step, schedule) for step in range(100)]
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 <= rates[-1] < 0.11


def test_a_masked_base_fills_in_what_it_has_read(tmp_path: Path) -> None:
    data = rows(tmp_path / "data", [("red", "cat"), ("blue", "bird"), ("好 的", "tree")])
    raw = recipe(steps=150).model_dump()
    raw["architecture"]["type"] = "bert"
    with pytest.raises(ValueError, match="a masked base has no targets"):
        PretrainRecipe.model_validate(raw)
    raw["documents"] = [{"input": "{text} {target}"}]
    pretrain(PretrainRecipe.model_validate(raw), data, tmp_path / "base")
    host = BaseHost.load(tmp_path / "base", kind="masked")
    assert host.has_lm_head
    facts = read_base_facts(tmp_path / "base")
    assert (facts.kind, facts.mask_token, facts.lm_head) == ("masked", True, True)
    words = host.tokenizer
    assert words.tokenize("好的red") == ["好", "的", "red"]
    for text, target in (("red", "cat"), ("blue", "bird")):
        ids = torch.tensor([words(f"{text} [MASK]")["input_ids"]])
        logits = host.model(ids).logits[0, ids[0].tolist().index(words.mask_token_id)]
        assert words.decode([int(logits.argmax())]) == target


def encoder_decoder(**train: object) -> PretrainRecipe:
    """Of two forms: texts alone, which are read one behind the other, and text to text."""
    raw = recipe("t5", **train).model_dump()
    raw["documents"] = [{"input": "one two three four five {target}"}, {"input": "ask {text}", "target": "{target}"}]
    raw["architecture"]["context"] = 48
    return PretrainRecipe.model_validate(raw)


def test_an_encoder_decoder_base_fills_in_spans_and_answers(tmp_path: Path) -> None:
    data = rows(tmp_path / "data", [("red", "cat"), ("blue", "bird")] * 6)
    pretrain(encoder_decoder(steps=120), data, tmp_path / "one")
    for name in ("two", "three"):
        pretrain(encoder_decoder(steps=3, warmup=0), data, tmp_path / name)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("two", "three")]
    assert weights[0] == weights[1]
    facts = read_base_facts(tmp_path / "one")
    assert (facts.kind, facts.model_type, facts.lm_head, facts.max_positions) == ("seq2seq", "t5", True, None)
    assert not facts.biases
    model, words = (auto.from_pretrained(tmp_path / "one") for auto in (AutoModelForSeq2SeqLM, AutoTokenizer))
    for text, target in (("red", "cat"), ("blue", "bird")):
        found = model.generate(**words(f"ask {text}", return_tensors="pt"), max_new_tokens=12, do_sample=False)[0]
        assert words.decode(found, skip_special_tokens=True) == target
        assert found[-1] == words.eos_token_id
    read = words("one two three four five cat one two three four five bird " * 4)["input_ids"][:47]
    marks = words.convert_tokens_to_ids(SENTINELS)
    right = []
    for seed in range(10):  # spans that have never been asked
        asked, answer = corrupted(read, noise_mask(len(read), random.Random(seed)), marks)
        guessed = model(input_ids=torch.tensor([asked]), labels=torch.tensor([answer])).logits[0].argmax(-1).tolist()
        right += [
            g == a for g, a in zip(guessed, answer, strict=True) if a not in marks
        ]  # who knows where a span ends?
    assert sum(right) > 0.6 * len(right)  # the commonest word would be a fifth


def test_its_tokenizer_is_t5s_and_text_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    padded = module.pad_sequence
    monkeypatch.setattr(
        module, "pad_sequence", lambda made, **how: seen.extend(t.tolist() for t in made) or padded(made, **how)
    )
    data = rows(tmp_path / "data", [("red </s>", "<extra_id_7> bird 猫")])
    raw = recipe("t5", steps=1, warmup=0).model_dump()
    pretrain(PretrainRecipe.model_validate(raw), data, tmp_path / "base")
    words = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert isinstance(words, T5Tokenizer)
    assert len(words) == read_base_facts(tmp_path / "base").vocab <= raw["vocab"]
    named = ["<pad>", "</s>", "<unk>", "<extra_id_99>", "<extra_id_0>"]
    assert words.convert_tokens_to_ids(named) == [0, 1, 2, len(words) - 100, len(words) - 1]  # as of google-t5/t5-small
    assert set(SENTINELS) <= set(words.all_special_tokens)
    whole = words("red bird")["input_ids"]
    assert whole[-1] == words.eos_token_id
    assert words.decode(whole, skip_special_tokens=True) == "red bird"
    assert words("owl")["input_ids"][-2] == words.unk_token_id  # w is in no text
    assert seen
    special = {*words.all_special_ids} - {words.unk_token_id, words.eos_token_id}
    assert all(ids.index(words.eos_token_id) == len(ids) - 1 and special.isdisjoint(ids) for ids in seen)
