"""What a base is, read from its folder without torch: config.json, the tokenizer's files, the safetensors headers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import BadInput
from orchestrator.recipe.architectures import (
    CAUSAL,
    MASKED,
    MASKED_HEADS,
    POOLED,
    POOLERS,
    POSITIONS_AFTER_PADDING,
    SEQ2SEQ,
    UNLIMITED,
    UNTIED,
)
from orchestrator.weights import parameter_count, tensor_names

_AGAIN = "a base is a folder that transformers wrote: `model.save_pretrained(folder)`"
_POSITIONS = ("n_positions", "max_position_embeddings", "n_ctx")
#: How the files of every tokenizer of transformers begin.
_TOKENIZER_FILES = ("tokenizer", "vocab", "spiece", "sentencepiece", "source.spm", "tekken")

#: In the folder of a base that a job has made of another: its parent, steps and job (training.finish).
ORIGIN = "origin.json"

Kind = Literal["causal", "seq2seq", "masked"]

_NARROWER = ("embedding_size", "word_embed_proj_dim")  # ALBERT, ELECTRA, MobileBERT; OPT


@dataclass(frozen=True)
class BaseFacts:
    kind: Kind
    model_type: str  #: as in config.json: gpt2, bert, t5 …
    architecture: str  #: the class that saved it: GPT2LMHeadModel
    hidden: int  #: H, width of the embeddings that the layers pass on
    layers: int  #: L, of one stack (the encoder's, where there are two)
    vocab: int  #: V
    max_positions: int | None  #: most tokens in a row; None where positions are relative without a limit (T5, BLOOM)
    mask_token: bool  #: the tokenizer has a mask token
    lm_head: bool  #: the weights can score words; False for a bare encoder such as BertModel
    parameters: int  #: numbers in the weight files
    remote_code: bool  #: config.json names Python code of its own (auto_map)
    embedding_width: int | None = None  #: of an input embedding, narrower than H in some; None: not known
    biases: bool = True  #: some weights are biases; False: none are (T5, Llama)
    pooler: bool = False  #: the weights hold BERT's pooler of the first token
    sentinel: bool = False  #: the tokenizer has <extra_id_0>, the T5 family's mark of what is missing
    uneven_heads: bool = False  #: values have another width than keys (DeepSeek's latent attention)
    layer_names: Sequence[str] = ()  #: last parts of the names of what has a weight: q_proj, c_attn …
    origin: dict[str, Any] | None = None  #: of a base that a job has made: parent, fingerprint, method, steps, job


def read_base_facts(folder: Path) -> BaseFacts:
    """Facts about the model in a local folder; BadInput when it is not a text model that can be read safely."""
    config = _read_config(folder)
    model_type, architecture = _names(folder, config)
    kind = _kind(folder, config, model_type, architecture)
    hidden = _number(folder, config, "hidden_size", "n_embd", "d_model", "dim")
    return BaseFacts(
        kind=kind,
        model_type=model_type,
        architecture=architecture or model_type,
        hidden=hidden,
        layers=_number(folder, config, "num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers"),
        vocab=_number(folder, config, "vocab_size"),
        max_positions=_max_positions(folder, config, model_type),
        mask_token=_has_mask_token(folder),
        lm_head=_has_lm_head(tensor_names(folder), config, kind, model_type),
        parameters=parameter_count(folder),
        remote_code=bool(config.get("auto_map")),
        embedding_width=next((config[name] for name in _NARROWER if isinstance(config.get(name), int)), hidden),
        biases=any(name.endswith("bias") for name in tensor_names(folder)),
        pooler=pooler_name(folder, model_type) is not None,
        sentinel=kind == "seq2seq" and _has_sentinel(folder),
        uneven_heads=_has_uneven_heads(config),
        layer_names=_layer_names(folder),
        origin=_json(folder / ORIGIN) or None,
    )


def _has_uneven_heads(config: Mapping[str, Any]) -> bool:
    """A key of latent attention has a part with positions and one without; a value's width is said apart."""
    nope, rope, value = (config.get(name) for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    if not (isinstance(nope, int) and isinstance(rope, int) and isinstance(value, int)):
        return False
    return nope + rope != value


def pooler_name(folder: Path, model_type: str) -> str | None:
    """What the names of the pooler's weight and bias begin with; None: the weights hold none."""
    if model_type not in POOLED:
        return None
    names = tensor_names(folder)
    ends = tuple(f".{pooler}.weight" for pooler in POOLERS)
    found = [name for name in names if f".{name}".endswith(ends) and name.removesuffix("weight") + "bias" in names]
    return found[0].removesuffix(".weight") if found else None


def _layer_names(folder: Path) -> list[str]:
    return sorted({name.split(".")[-2] for name in tensor_names(folder) if name.count(".") and name.endswith("weight")})


def refuse_without_tokenizer(folder: Path) -> None:
    """BadInput for a folder with weights alone: nobody could use it on a text."""
    if not any(path.name.startswith(_TOKENIZER_FILES) for path in folder.iterdir()):
        raise BadInput(
            "no tokenizer in this folder", where=str(folder), hint="save it there: `tokenizer.save_pretrained(folder)`"
        )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput("no config.json in this folder", where=str(folder), hint=_AGAIN) from None
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot be read: {error}", where=str(path), hint=_AGAIN) from error
    if not isinstance(config, dict):
        raise BadInput("is not a JSON object", where=str(path), hint=_AGAIN)
    return config


def _names(folder: Path, config: dict[str, Any]) -> tuple[str, str]:
    """(model_type, architecture), either may be empty."""
    model_type, named = config.get("model_type") or "", config.get("architectures") or [""]
    if not isinstance(model_type, str) or not isinstance(named, list) or not isinstance(named[0], str):
        what = "model_type must be text and architectures a list of names"
        raise BadInput(what, where=str(folder / "config.json"), hint=_AGAIN)
    return model_type, named[0]


def _kind(folder: Path, config: dict[str, Any], model_type: str, architecture: str) -> Kind:
    """By the class that saved it where its name says so, else by the model type."""
    if architecture.endswith("ForMaskedLM"):
        return "masked"
    if architecture.endswith(("ForCausalLM", "LMHeadModel")) and model_type not in SEQ2SEQ:
        return "causal"
    kinds: dict[Kind, frozenset[str]] = {"causal": CAUSAL, "seq2seq": SEQ2SEQ, "masked": MASKED}
    for kind, types in kinds.items():
        if model_type in types:
            return kind
    if (
        config.get("is_encoder_decoder")
        and architecture.endswith("ForConditionalGeneration")
        and "vocab_size" in config
    ):
        return "seq2seq"
    named = " ".join(part for part in (architecture, f"model_type {model_type!r}") if part)
    raise BadInput(
        f"not a causal, encoder-decoder or masked language model of text that ptq knows ({named})",
        where=str(folder / "config.json"),
    )


def _number(folder: Path, config: dict[str, Any], *names: str) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    raise BadInput(f"holds no {names[0]} that is a number", where=str(folder / "config.json"), hint=_AGAIN)


def _max_positions(folder: Path, config: dict[str, Any], model_type: str) -> int | None:
    given = [name for name in _POSITIONS if config.get(name)]
    if model_type in UNLIMITED or not given:
        return None
    value = _number(folder, config, given[0])
    if model_type in POSITIONS_AFTER_PADDING:
        padding = config.get("pad_token_id")
        return value - (padding if isinstance(padding, int) else 1) - 1
    return value  # OPT and BART make two rows more than they say, so all of these are usable


def _has_mask_token(folder: Path) -> bool:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if _json(folder / name).get("mask_token"):
            return True
    added = _json(folder / "tokenizer.json").get("added_tokens") or []
    if any(token.get("content") in {"[MASK]", "<mask>"} for token in added):
        return True
    vocabulary = folder / "vocab.txt"
    return vocabulary.is_file() and "[MASK]" in vocabulary.read_text(encoding="utf-8", errors="replace").split("\n")


def _has_sentinel(folder: Path) -> bool:
    """As a token of tokenizer.json, as a piece of the model that a slow tokenizer reads, or made when it is loaded."""
    if _json(folder / "tokenizer_config.json").get("extra_ids"):
        return True
    files = (folder / "tokenizer.json", folder / "spiece.model")
    return any(b"<extra_id_0>" in path.read_bytes() for path in files if path.is_file())


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot be read: {error}", where=str(path)) from error
    return value if isinstance(value, dict) else {}


def _has_lm_head(names: frozenset[str], config: dict[str, Any], kind: Kind, model_type: str) -> bool:
    if kind == "masked":
        return any(f".{name}".endswith(tuple(f".{end}" for end in MASKED_HEADS)) for name in names)
    if config.get("tie_word_embeddings", kind == "seq2seq" or model_type not in UNTIED):
        return True
    return any(name.endswith(("lm_head.weight", "embed_out.weight")) for name in names)
