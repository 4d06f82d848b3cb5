"""Two texts in a row, as the base's own tokenizer puts them together: its separator between, and where the base has it
an embedding for each of the two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch.testing import assert_close
from training_fixtures import recipe
from training_tokenizers import encoder
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from orchestrator.errors import BadRecipe
from orchestrator.recipe.bases import read_base_facts
from orchestrator.recipe.fit import fit_faults, recipe_findings
from orchestrator.recipe.schema import Recipe
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning import Prompt
from orchestrator.tuning.forward import forward
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.rows import NO_LABEL, Row, RowBatch

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
BASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (BertForMaskedLM, BertConfig, {}),
    "electra": (ElectraForMaskedLM, ElectraConfig, {"embedding_size": 32}),
    "albert": (AlbertForMaskedLM, AlbertConfig, {"embedding_size": 16}),
    "roberta": (RobertaForMaskedLM, RobertaConfig, {"type_vocab_size": 1, "pad_token_id": 0}),
}
ROWS = [{"a": "the cat sat", "b": "a red house"}, {"a": "house", "b": "the red cat sat a red cat"}]


def saved(folder: Path, name: str) -> Path:
    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(["the cat sat a red house . ?"], trainers.WordLevelTrainer(special_tokens=names))
    pair = "[CLS] $A [SEP] [SEP] $B [SEP]" if name == "roberta" else "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), names, strict=True))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, model_input_names=["input_ids", "token_type_ids", "attention_mask"], **special
    )
    model, config, more = BASES[name]
    torch.manual_seed(3)
    base = model(config(vocab_size=len(tokenizer), max_position_embeddings=64, **SHAPE, **more))
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", list(BASES))
def test_two_texts_are_read_as_by_transformers(name: str, tmp_path: Path) -> None:
    """In one batch of ragged rows, with and without virtual tokens in front and inside, padded and in one line."""
    host = BaseHost.load(saved(tmp_path, name), kind="masked")
    assert (host.separator is None) == (name == "roberta")
    text = TextEncoder(host, slots="template", length=3, context=64)
    prompt = Prompt(torch.randn(3, host.embedding_width, generator=torch.Generator().manual_seed(1)))
    template = "{a} [SEP] {b}"
    model = BASES[name][0].from_pretrained(tmp_path).eval()
    for placed, at in ((template, None), ("[P:1] {a} ? [SEP] [P:2] {b}", (1, 0))):
        rows, expected = [], []
        for fields in ROWS:
            ids = text.input_ids(placed, fields, limit=50)
            rows.append(Row(ids, [0 if i == 0 else NO_LABEL for i in range(len(ids))], prompt=0))
            asked = host.tokenizer(fields["a"] + (" ?" if at else ""), fields["b"], return_tensors="pt")
            if at is None:
                assert ids == asked["input_ids"][0].tolist()
            expected.append(_plain(model, asked, prompt if at else None, host.tokenizer.sep_token_id))
        batch = RowBatch.collate(rows, pad_id=host.pad_id)
        with torch.no_grad():
            ours = forward(host, batch, [prompt]).logits
            assert_close(ours, torch.stack(expected), atol=1e-5, rtol=1e-5)
            host.packs = False if host.packs else None  # then padded; or asked again
            assert_close(forward(host, batch, [prompt]).logits, torch.stack(expected), atol=1e-5, rtol=1e-5)
            host.packs = None


def _plain(model: Any, asked: Any, prompt: Prompt | None, separator: int) -> torch.Tensor:
    """[V]: transformers' logits at the opening token; of a prompt one vector stands behind it, two where `b` begins."""
    embedded, types = model.get_input_embeddings()(asked["input_ids"])[0], asked["token_type_ids"][0]
    if prompt is not None:
        assert prompt.embeddings is not None
        begins = asked["input_ids"][0].tolist().index(separator) + 1
        while int(asked["input_ids"][0, begins]) == separator:
            begins += 1
        one, two = prompt.embeddings[:1], prompt.embeddings[1:]
        embedded = torch.cat([embedded[:1], one, embedded[1:begins], two, embedded[begins:]])
        types = torch.cat([types[:1], types[:1], types[1:begins], types[begins : begins + 1].repeat(2), types[begins:]])
    if model.config.type_vocab_size < 2:
        types = torch.zeros_like(types)
    with torch.no_grad():
        logits: torch.Tensor = model(inputs_embeds=embedded[None], token_type_ids=types[None]).logits[0, 0]
    return logits


def test_what_cannot_be_parted_is_refused() -> None:
    def faults(task: dict[str, Any]) -> list[str]:
        made = recipe({"type": "prompt-tuning", "length": 2}, task=task)
        return [one.message for one in recipe_findings(Recipe.model_validate(made))]

    head = {"type": "classify", "labels": ["x", "y"], "head": {}}
    (twice,) = faults({**head, "input": "{a} [SEP] {b} [SEP] {a}"})
    assert twice.startswith("2 times [SEP]")
    (written,) = faults({"type": "generate", "input": "{a} [SEP] {b}", "target": "{a}"})
    assert "`type: generate` reads one" in written
    with pytest.raises(ValueError, match=r"write \[SEP\]"):
        faults({**head, "input": "{a} [sep] {b}"})
    text = encoder("gpt2")
    with pytest.raises(BadRecipe, match="puts nothing between two texts"):
        text.input_ids("{a} [SEP] {b}", ROWS[0], limit=20)


def test_a_base_that_is_no_encoder_is_refused(bases: dict[str, Path]) -> None:
    task = {"type": "classify", "input": "{a} [SEP] {b}", "labels": ["x", "y"], "label": "{a}"}
    made = Recipe.model_validate(recipe({"type": "prompt-tuning", "length": 2}, task=task))
    (fault,) = fit_faults(made, read_base_facts(bases["gpt2"]), ["a", "b"], {"train": 9})
    assert "parts two texts for encoders such as BERT" in fault
