"""Tiny random models of many architectures, with weights large enough that every input matters."""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from orchestrator.tuning import BaseHost

Kind = Literal["causal", "seq2seq", "masked"]

V, H = 61, 32
_DECODER = {
    "vocab_size": V,
    "hidden_size": H,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
}
_GROUPED = _DECODER | {"num_key_value_heads": 2, "max_position_embeddings": 128}
_BART = {
    "vocab_size": V,
    "d_model": H,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SEQ2SEQ_IDS = _IDS | {"decoder_start_token_id": 1, "forced_eos_token_id": None}


def bare(name: str) -> tuple[Kind, PreTrainedModel]:
    """An untouched model of transformers, fp32."""
    gpt2 = GPT2Config(vocab_size=V, n_embd=H, n_layer=2, n_head=4, n_positions=64, **_IDS)
    t5: dict[str, Any] = {"vocab_size": V, "d_model": H, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4}
    scaled = _BART | {"scale_embedding": True}  # as Pegasus is released
    makers: dict[str, tuple[Kind, Any]] = {
        "gpt2": ("causal", lambda: GPT2LMHeadModel(gpt2)),
        "llama": ("causal", lambda: LlamaForCausalLM(LlamaConfig(**_GROUPED, **_IDS))),
        "qwen3": ("causal", lambda: Qwen3ForCausalLM(Qwen3Config(**_GROUPED, head_dim=12, **_IDS))),
        "gemma2": (
            "causal",
            lambda: Gemma2ForCausalLM(Gemma2Config(**_GROUPED, head_dim=8, sliding_window=32, **_IDS)),
        ),
        "opt": ("causal", lambda: OPTForCausalLM(OPTConfig(**_opt(), **_IDS))),
        "t5": ("seq2seq", lambda: T5ForConditionalGeneration(T5Config(**t5, **_SEQ2SEQ_IDS))),
        "bart": ("seq2seq", lambda: BartForConditionalGeneration(BartConfig(**_BART, **_SEQ2SEQ_IDS))),
        "pegasus": ("seq2seq", lambda: PegasusForConditionalGeneration(PegasusConfig(**scaled, **_SEQ2SEQ_IDS))),
        "bert": ("masked", lambda: BertForMaskedLM(BertConfig(**_DECODER))),
        "roberta": ("masked", lambda: RobertaForMaskedLM(RobertaConfig(**_DECODER, pad_token_id=1))),
        "electra": ("masked", lambda: ElectraForMaskedLM(ElectraConfig(**_DECODER, embedding_size=16))),
        "albert": ("masked", lambda: AlbertForMaskedLM(AlbertConfig(**_DECODER, embedding_size=16))),
    }
    kind, make = makers[name]
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2) if parameter.dim() > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
    model.eval()
    return kind, model


def host(name: str, dtype: torch.dtype = torch.float32) -> BaseHost:
    kind, model = bare(name)
    return BaseHost.from_model(model.to(dtype), None, kind)


def _opt() -> dict[str, Any]:
    return {
        "vocab_size": V,
        "hidden_size": H,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 40,
        "word_embed_proj_dim": 16,
        "max_position_embeddings": 64,
    }


CAUSAL = ["gpt2", "llama", "qwen3", "gemma2", "opt"]
SEQ2SEQ = ["t5", "bart", "pegasus"]
MASKED = ["bert", "roberta", "electra", "albert"]
EACH = CAUSAL + SEQ2SEQ + MASKED
EACH_KIND = ["gpt2", "llama", "t5", "bart", "bert"]

_FP32_INSIDE = {"llama", "qwen3", "gemma2", "opt", "t5"}  # norms or eager softmax in fp32, whatever the weights are


def precision(name: str) -> float:
    """How far a double-precision result may be off, relative to its largest number."""
    return 3e-6 if name in _FP32_INSIDE else 1e-9
