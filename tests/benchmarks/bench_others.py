"""What the speed benchmark knows of bases that look both ways: an encoder-decoder, and one with a mask.

Nothing of a prompt is shared between rows there, for what stands behind it is seen from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

#: name -> (kind, V, H, L, heads); the T5 has L layers on either side, and both have perceptrons of width 4 H
OTHERS = {"T5 2M": ("seq2seq", 2048, 128, 4, 4), "BERT 22M": ("masked", 30522, 384, 6, 12)}
MASK = "[MASK]"


def kind_of(base: str) -> str:
    return OTHERS[base][0] if base in OTHERS else "causal"


def model(base: str, context: int) -> Any:
    """Random weights."""
    kind, vocabulary, width, layers, heads = OTHERS[base]
    ids = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if kind == "seq2seq":
        sides = {"d_model": width, "d_kv": width // heads, "d_ff": 4 * width, "num_layers": layers, "num_heads": heads}
        return T5ForConditionalGeneration(T5Config(**sides, **ids, decoder_start_token_id=0))
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return BertForMaskedLM(BertConfig(**shape, **ids, intermediate_size=4 * width, max_position_embeddings=context))


def task(kind: str, tokens: int) -> dict[str, Any]:
    """The `task:` of a recipe: to write the target, or to fill it in behind the text."""
    longest = {"max_input_tokens": 3 * tokens, "target": "{target}"}
    if kind == "masked":
        return {"type": "cloze", "input": f"{{text}} {MASK}", **longest}
    return {"type": "generate", "input": "{text}", "max_new_tokens": max(8, tokens // 2), **longest}


def lengths_of(kind: str, text: int, target: int) -> tuple[int, int]:
    """Words of a row -> (tokens that are read, tokens with a label)."""
    if kind == "seq2seq":
        return text, target + 1
    return (text, 1) if kind == "masked" else (text + 1, target + 1)


def counted(base: str, rows: Sequence[tuple[int, int]], n: int, *, deep: bool) -> tuple[float, float, float, float]:
    """Real tokens of a step's rows, those that ptq and PEFT run through the layers, and the FLOPs of an exact step.

    `rows`: (read, labelled). `deep`: keys and values, so that no layer works on the prompt itself.
    """
    kind, vocabulary, width, layers, _ = OTHERS[base]
    front = 0 if deep else n
    encoder, decoder, cross = 12 * width * width, 14 * width * width, 2 * width * width  # numbers a layer and token
    if kind == "masked":
        read = [(front + words + 1, n + words + 1) for words, _ in rows]
        real = sum(own for own, _ in read)
        flops = layers * sum(4 * encoder * own + 12 * width * own * seen for own, seen in read)
        return real, real, len(rows) * max(own for own, _ in read), flops + 4 * vocabulary * width * len(rows)
    flops = 0.0
    for words, labelled in rows:
        own = front + words
        pairs = own * (n + words) + labelled * (labelled + 1) / 2 + labelled * own
        flops += layers * (4 * (encoder + cross) * own + 4 * decoder * labelled + 12 * width * pairs)
        flops += 4 * vocabulary * width * labelled
    real = sum(front + words + labelled for words, labelled in rows)
    padded = len(rows) * (front + max(words for words, _ in rows) + max(labelled for _, labelled in rows))
    return real, padded, padded, flops


def numbers_of(base: str) -> float:
    """Numbers of the base that a forward reads."""
    kind, vocabulary, width, layers, _ = OTHERS[base]
    return layers * width * width * (28 if kind == "seq2seq" else 12) + vocabulary * width
