"""The one table of what is known of model types without loading them, by config.json's `model_type`."""

from __future__ import annotations

_CAUSAL = """
    gpt2 gpt_neo gpt_neox gptj gpt_bigcode llama mistral mixtral qwen2 qwen2_moe qwen3 qwen3_moe gemma gemma2
    gemma3_text phi phi3 opt bloom falcon mpt stablelm starcoder2 olmo olmo2 olmo3 granite cohere codegen xglm smollm3
    glm glm4 nemotron biogpt ctrl openai-gpt exaone4 ernie4_5 gpt_oss
"""
_SEQ2SEQ = "bart mbart pegasus pegasus_x t5 mt5 umt5 longt5 switch_transformers m2m_100 blenderbot led"
_MASKED = """
    bert roberta electra albert distilbert camembert xlm-roberta xlm-roberta-xl deberta deberta-v2 mpnet mobilebert
    longformer big_bird ernie nezha roformer convbert squeezebert modernbert eurobert xlm flaubert
"""
_UNTIED = """
    gpt_neox gptj llama mistral mixtral qwen2 qwen2_moe qwen3 qwen3_moe phi phi3 stablelm olmo olmo2 olmo3 codegen
    nemotron glm glm4 exaone4 gpt_oss
"""

CAUSAL = frozenset(_CAUSAL.split())
SEQ2SEQ = frozenset(_SEQ2SEQ.split())
MASKED = frozenset(_MASKED.split())

#: Model types that transformers knows itself: their own code, if they bring any, is not needed.
NATIVE = CAUSAL | SEQ2SEQ | MASKED

#: Learned positions that begin after the padding index: RoBERTa's 514 hold 512 tokens.
POSITIONS_AFTER_PADDING = frozenset({"roberta", "camembert", "xlm-roberta", "xlm-roberta-xl", "longformer", "mpnet"})

#: No table of positions and no limit to them: relative buckets or ALiBi.
UNLIMITED = frozenset({"t5", "mt5", "umt5", "longt5", "switch_transformers", "bloom", "mpt"})

#: Causal types whose positions are added to the input: their keys and values may stand at any place of a row.
POSITIONS_ADDED = frozenset({"gpt2", "gpt_neo", "gpt_bigcode", "opt", "biogpt", "xglm"})

#: Encoder-decoder types that fill in what is missing: their decoder writes the whole text again, with the word (BART),
FILLED_BY_TEXT = frozenset({"bart"})
#: or what stood at the sentinel <extra_id_0>, behind it (T5). Pegasus writes whole sentences, others translate.
FILLED_BY_SENTINEL = frozenset({"t5", "mt5", "umt5", "longt5", "switch_transformers"})

#: Encoders whose checkpoints may hold a pooler, tanh(W [CLS] + b), under one of these names.
POOLED = frozenset({"bert", "roberta", "albert", "camembert", "xlm-roberta", "mpnet", "ernie"})
POOLERS = ("pooler.dense", "pooler")

#: Causal types whose output matrix is its own by default; the others tie it to the input embeddings.
UNTIED = frozenset(_UNTIED.split())

#: Last parts of tensor names that only a checkpoint with its masked language-model head holds.
MASKED_HEADS = (
    "cls.predictions.transform.dense.weight",  # BERT, ERNIE, BigBird …
    "lm_head.dense.weight",  # RoBERTa, MPNet, CamemBERT, XLM-RoBERTa
    "generator_predictions.dense.weight",  # ELECTRA's generator; its discriminator has none
    "predictions.dense.weight",  # ALBERT; the discriminator's head is `discriminator_predictions.dense.weight`
    "vocab_transform.weight",  # DistilBERT
    "lm_predictions.lm_head.dense.weight",  # DeBERTa
    "decoder.bias",  # ModernBERT
    "pred_layer.proj.weight",  # XLM, FlauBERT
)

#: How the linear layers that make queries and values are called, some together with the keys (LoRA's usual targets).
QUERIES_AND_VALUES = frozenset(
    ("q_proj", "v_proj", "query", "value", "q", "v", "c_attn", "query_key_value", "qkv_proj", "q_lin", "v_lin")
)
