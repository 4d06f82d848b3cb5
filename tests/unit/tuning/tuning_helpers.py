"""Methods, rows and losses that the tests of the tuning library share."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import TypeAdapter
from tiny_bases import SEQ2SEQ, V
from torch import Tensor
from torch.nn import functional

from orchestrator.recipe.methods import Method
from orchestrator.tuning import BaseHost, Output, Prompt, Row, RowBatch, TunedMethod, build_method, forward

METHODS: dict[str, dict[str, Any]] = {
    "prompt-tuning": {"type": "prompt-tuning", "length": 3},
    "prompt-tuning-residual": {
        "type": "prompt-tuning",
        "length": 3,
        "placement": "after-bos",
        "reparameterization": {"type": "residual", "hidden": 6},
    },
    "prefix-tuning": {"type": "prefix-tuning", "length": 4},
    "prefix-tuning-mlp": {"type": "prefix-tuning", "length": 5, "reparameterization": {"hidden": 6}},
    "prefix-embedding": {
        "type": "prefix-tuning",
        "length": 3,
        "embedding_only": True,
        "reparameterization": {"hidden": 6, "layers": 2},
    },
    "p-tuning": {"type": "p-tuning"},
    "p-tuning-mlp": {"type": "p-tuning", "length": 2, "reparameterization": {"type": "mlp"}},
    "head": {"type": "head"},
}

#: For bases with one stack of layers.
ONE_STACK: dict[str, dict[str, Any]] = {
    "p-tuning-v2": {"type": "p-tuning-v2", "length": 3, "dropout": 0},
    "p-tuning-v2-mlp": {"type": "p-tuning-v2", "length": 4, "dropout": 0, "reparameterization": {"hidden": 6}},
}
#: For causal bases that add positions to their input.
INFIX: dict[str, dict[str, Any]] = {
    "infix": {"type": "prefix-tuning", "length": 3, "placement": "infix"},
    "infix-mlp": {
        "type": "prefix-tuning",
        "length": 4,
        "placement": "infix",
        "reparameterization": {"hidden": 6, "layers": 2},
    },
}
ALL = METHODS | ONE_STACK | INFIX


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """(base, method) of everything that fits together."""
    return [(name, c) for name in names for c in ALL if _fits(name, c)]


def _fits(name: str, config: str) -> bool:
    return name in {"gpt2", "opt"} if config in INFIX else config not in ONE_STACK or name not in SEQ2SEQ


def built(host: BaseHost, config: dict[str, Any], *, seed: int = 0, length: int | None = None) -> TunedMethod:
    """The method in the host's precision."""
    parsed = TypeAdapter(Method).validate_python(config)
    if parsed.type == "p-tuning" and parsed.length is None:
        length = length or 4
    method = build_method(parsed, host, length=length, generator=torch.Generator().manual_seed(seed))
    return method.to(host.dtype)


def rows(host: BaseHost, method: TunedMethod, count: int, *, prompt: int = 0, seed: int = 0) -> list[Row]:
    """`count` rows of different lengths with the method's virtual tokens where it wants them."""
    draw = random.Random(seed)
    return [_row(host, method, draw, prompt) for _ in range(count)]


def plain_ids(draw: random.Random, low: int = 2, high: int = 9) -> list[int]:
    return [draw.randrange(5, V) for _ in range(draw.randint(low, high))]


def _row(host: BaseHost, method: TunedMethod, draw: random.Random, prompt: int) -> Row:
    virtual = [-(j + 1) for j in range(method.length)]
    text, target = plain_ids(draw), plain_ids(draw, 1, 4)
    if method.slots == "front":
        ids = virtual + text
    elif method.slots == "after-bos":
        ids = [1, *virtual, *text]
    elif method.slots == "template":
        middle = len(text) // 2
        ids = [*virtual[:2], *text[:middle], *virtual[2:], *text[middle:]]
    else:
        ids = text
    if host.kind == "seq2seq":
        return Row(ids, target, prompt)
    if host.kind == "causal":
        infix_at = len(ids) - 1 if method.slots == "infix" else 0
        return Row(ids + target, [-100] * len(ids) + target, prompt, infix_at=infix_at)
    labels = [draw.randrange(5, V) if id_ >= 0 and draw.random() < 0.5 else -100 for id_ in ids]
    labels[-1] = draw.randrange(5, V)
    return Row(ids, labels, prompt)


def run(
    host: BaseHost, batch_rows: Sequence[Row], prompts: Sequence[Prompt], *, side: str = "right", hidden: bool = False
) -> Output:
    return forward(host, RowBatch.collate(batch_rows, pad_id=host.pad_id, side=side), prompts, hidden=hidden)  # type: ignore[arg-type]


def loss_of(output: Output, of_rows: Sequence[int]) -> Tensor:
    """Mean cross-entropy over the labels of some rows."""
    chosen = torch.isin(output.row_of, torch.tensor(list(of_rows)))
    return functional.cross_entropy(output.logits[chosen], output.labels[chosen])


def gradients(method: TunedMethod, loss: Tensor) -> dict[str, Tensor]:
    named = dict(method.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {name: torch.zeros(()) if g is None else g for name, g in zip(named, found, strict=True)}


def close(actual: Tensor, expected: Tensor, relative: float) -> None:
    """Equal up to `relative` of the largest expected number."""
    assert actual.shape == expected.shape
    distance = float((actual - expected).detach().abs().max()) if actual.numel() else 0.0
    scale = float(expected.detach().abs().max()) if expected.numel() else 0.0
    assert distance <= relative * max(scale, 1e-6), f"differs by {distance:.3g} on a scale of {scale:.3g}"
