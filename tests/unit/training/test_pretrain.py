"""Pretraining makes a base that transformers loads and that has learned its documents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator.data.store import SplitWriter
from orchestrator.recipe.bases import read_base_facts
from orchestrator.recipe.pretrain import PretrainRecipe, PretrainSchedule
from orchestrator.training import pretrain as module
from orchestrator.training.pretrain import learning_rate, pretrain
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
