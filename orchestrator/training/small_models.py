"""Models of the bases that are pretrained here: random weights, tied embeddings, no dropout."""

from __future__ import annotations

from typing import Any

from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from orchestrator.recipe.pretrain import Architecture
from orchestrator.training.small_tokenizers import AnyTokenizer


def build_model(architecture: Architecture, tokenizer: AnyTokenizer) -> PreTrainedModel:
    tokens = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "tie_word_embeddings": True,
    }
    make = {"bert": _bert, "gpt2": _gpt2, "llama": _llama, "t5": _t5}[architecture.type]
    return make(architecture, tokens)


def _gpt2(a: Architecture, tokens: dict[str, Any]) -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=a.hidden, n_layer=a.layers, n_head=a.heads, n_positions=a.context,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **tokens,
        )
    )  # fmt: skip


def _llama(a: Architecture, tokens: dict[str, Any]) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=a.hidden, num_hidden_layers=a.layers, num_attention_heads=a.heads, num_key_value_heads=a.heads,
            intermediate_size=4 * a.hidden, max_position_embeddings=a.context, **tokens,
        )
    )  # fmt: skip


def _bert(a: Architecture, tokens: dict[str, Any]) -> PreTrainedModel:
    return BertForMaskedLM(
        BertConfig(
            vocab_size=tokens["vocab_size"], pad_token_id=tokens["pad_token_id"], hidden_size=a.hidden,
            num_hidden_layers=a.layers, num_attention_heads=a.heads, intermediate_size=4 * a.hidden,
            max_position_embeddings=a.context, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def _t5(a: Architecture, tokens: dict[str, Any]) -> PreTrainedModel:
    """The layers of T5 1.1: RMS norms, relative positions, gated GELU (2.5 times as wide, as in 1.1's xl and xxl)."""
    return T5ForConditionalGeneration(
        T5Config(
            d_model=a.hidden, num_layers=a.layers, num_heads=a.heads, d_kv=a.hidden // a.heads,
            d_ff=5 * a.hidden // 2, feed_forward_proj="gated-gelu", dropout_rate=0.0,
            decoder_start_token_id=tokens["pad_token_id"], **tokens,
        )
    )  # fmt: skip
