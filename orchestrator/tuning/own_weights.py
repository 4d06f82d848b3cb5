"""The base's own weights where a job trains them: all of them, or its biases. Such a job has the base for itself.

And what an artifact brings for its base: such weights, or LoRA's changes beside its layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from orchestrator.errors import BadInput
from orchestrator.paths import ArtifactPaths, write_atomic
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.methods.lora import Change, add_changes, beside, load_changes


def weight_names(host: BaseHost, which: Literal["biases", "all"]) -> frozenset[str]:
    """Names of parameters; tied ones are one. Raises BadInput where there are none (T5 has no biases)."""
    names = frozenset(name for name, _ in host.model.named_parameters() if which == "all" or name.endswith("bias"))
    if not names:
        raise BadInput(f"{type(host.model).__name__} has no biases to train", where="method.weights")
    return names


class OwnWeights:
    """Unfreezes them for good, and remembers what they were."""

    def __init__(self, host: BaseHost, which: Literal["biases", "all"]) -> None:
        self.names = weight_names(host, which)
        self._named = {name: p for name, p in host.model.named_parameters() if name in self.names}
        for parameter in self._named.values():
            parameter.requires_grad_(True)
        self._before = {name: p.detach().cpu().clone() for name, p in self._named.items()}

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self._named.values())

    def state_dict(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self._named.items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        _copy(self._named, tensors)

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """The base as it was, inside."""
        trained = {name: p.detach().cpu().clone() for name, p in self._named.items()}
        _copy(self._named, self._before)
        try:
            yield
        finally:
            _copy(self._named, trained)


def save_weights(folder: Path, weights: OwnWeights) -> None:
    """By the names of the model's parameters, all at once or not at all."""
    ready = {name: tensor.cpu().contiguous() for name, tensor in weights.state_dict().items()}
    write_atomic(ArtifactPaths(folder).base_weights, save(ready, metadata={"format": "pt"}))


@dataclass(frozen=True)
class Brought:
    """What the base has of an artifact."""

    weights: Mapping[str, Tensor] = field(default_factory=dict)  #: in place of its own, by their names
    changes: Mapping[str, Change] = field(default_factory=dict)  #: beside its layers, by their names

    def __bool__(self) -> bool:
        return bool(self.weights or self.changes)


def load_brought(folder: Path, host: BaseHost) -> Brought:
    """Nothing where the artifact leaves the base as it is. Raises BadInput."""
    path = ArtifactPaths(folder).base_weights
    if not path.is_file():
        return Brought(changes=load_changes(folder, host))
    try:
        tensors = load(path.read_bytes())
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BadInput("not a safetensors file, or a damaged one", where=str(path)) from error
    named = dict(host.model.named_parameters())
    wrong = [name for name, t in tensors.items() if name not in named or named[name].shape != t.shape]
    if wrong:
        raise BadInput(f"`{wrong[0]}` is no weight of this base, or has another shape", where=str(path))
    return Brought({name: tensor.to(named[name]) for name, tensor in tensors.items()})


@contextmanager
def in_place(host: BaseHost, brought: Brought) -> Iterator[None]:
    """The base with what an artifact brings, inside. No weight is copied."""
    before = _take(host, brought.weights)
    try:
        with beside(host, brought.changes):
            yield
    finally:
        _take(host, before)


def put_in(host: BaseHost, brought: Brought) -> None:
    """The same for good."""
    _take(host, brought.weights)
    add_changes(host, brought.changes)


def _take(host: BaseHost, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put these in place of the base's own, which are returned."""
    named = dict(host.model.named_parameters())
    before = {name: named[name].data for name in weights}
    for name, tensor in weights.items():
        named[name].data = tensor
    return before


@torch.no_grad()
def _copy(named: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in named.items():
        parameter.copy_(tensors[name])
