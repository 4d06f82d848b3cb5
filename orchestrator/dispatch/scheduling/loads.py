"""What a job brings to a step, estimated from its recipe, its base's config and the size of its data. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.cost import Load
from orchestrator.tasks.template import parse

#: `max_input_tokens` is a bound that most rows are far from; beyond this many it says nothing about a usual row.
ROW_TOKENS = 256
NEW_TOKENS = 64
#: Bytes of a text for each of its tokens: 4 in English on the usual vocabularies, 2 to 3 in other scripts.
TOKEN_BYTES = 3


def load_of(recipe: Mapping[str, Any], base: Mapping[str, Any], field_bytes: float | None, processes: int) -> Load:
    """`field_bytes`: of a field of a usual row; None: not known."""
    train, task, method = recipe["train"], recipe["task"], recipe["method"]
    passes = train.get("accumulation", 1)
    most = min(task.get("max_input_tokens", 512), ROW_TOKENS)
    writes = task["type"] == "generate"
    if writes:
        most += min(task.get("max_new_tokens", 64), NEW_TOKENS)
    text = most if field_bytes is None else min(most, _text_tokens(task, field_bytes))
    return Load(
        rows=-(-train.get("batch_size", 16) // (passes * processes)),
        row_tokens=text + _in_row(method, task),
        row_labels=min(task.get("max_new_tokens", 64), NEW_TOKENS, -(-text // 2)) if writes else 1,
        passes=passes,
        parameters=_parameters(method, _shape(base["path"])),
    )


def _text_tokens(task: Mapping[str, Any], field_bytes: float) -> int:
    templates = [str(task.get("input", "")), str(task.get("target") or "")]
    fields = {name for template in templates for name in parse(template).fields}
    return max(1, round((field_bytes * len(fields) + sum(map(len, templates))) / TOKEN_BYTES))


def _in_row(method: Mapping[str, Any], task: Mapping[str, Any]) -> int:
    """Virtual tokens that stand in the row; those of a prefix are in the layers."""
    if method["type"] in {"prompt-tuning", "p-tuning"} or method.get("embedding_only"):
        return method.get("length") or parse(str(task.get("input", ""))).virtual_tokens
    return 0


@lru_cache(maxsize=256)
def _shape(folder: str) -> tuple[int, int, int] | None:
    """(H, L, attention stacks) by config.json alone: `ptq status` asks for every job that waits. None: not readable."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        width = next(int(config[name]) for name in _WIDTHS if name in config)
        layers = next(int(config[name]) for name in _LAYERS if name in config)
        return width, layers, 3 if config.get("is_encoder_decoder") else 1
    except (OSError, ValueError, TypeError, StopIteration):
        return None


_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers")


def _parameters(method: Mapping[str, Any], shape: tuple[int, int, int] | None) -> int:
    """Numbers that are trained, from above: prefixes are counted with as many key heads as query heads."""
    if shape is None:
        return 0
    width, layers, stacks = shape
    length = method.get("length") or 20
    network = method.get("reparameterization") or {}
    hidden = network.get("hidden") or width
    if method["type"] in {"prefix-tuning", "p-tuning-v2"}:
        made = 2 * layers * width
        if network.get("type", "none") == "none" and "hidden" not in network:
            return stacks * length * made
        inner = width * hidden + (network.get("layers", 1) - 1) * hidden * hidden + hidden * made
        return stacks * (length * width + inner)
    sizes = {"lstm": 10 * width * hidden, "mlp": 2 * width * hidden, "residual": 2 * width * hidden}
    copies = length if network.get("type") == "residual" and not network.get("shared", True) else 1
    return length * width + copies * sizes.get(network.get("type", "none"), 0)
