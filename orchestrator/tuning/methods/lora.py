"""LoRA (Hu et al. 2022): a low-rank change beside some of the base's linear layers; the row to compare prompts with.

The layers stay as they are: hooks add to what they give, so the base moves in no bit. The change itself is fp32 and
stays beside the weights, in use as in training: added to weights in bf16 most of it would be rounded away (8 bits of a
number are kept), and what was scored would not be what predicts. It costs 2 % of the time to write a
text. What is kept are the files that PEFT's `save_pretrained` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from orchestrator.errors import BadInput, MethodDoesNotFit
from orchestrator.paths import read_json, write_atomic, write_json
from orchestrator.recipe import methods as recipe
from orchestrator.recipe.architectures import QUERIES_AND_VALUES
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.methods import starting
from orchestrator.tuning.prompt import Prompt

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: Where an artifact keeps PEFT's own two files.
KEPT = "peft"
_PREFIX = "base_model.model."
_TASK_TYPES = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "masked": None}


class Lora(nn.Module):
    slots: Literal["none"] = "none"
    length = 0

    def __init__(self, config: recipe.Lora, host: BaseHost, *, length: int | None, generator: torch.Generator) -> None:
        super().__init__()
        self._config, self._kind, self._on = config, host.kind, True
        wanted = frozenset(config.targets or QUERIES_AND_VALUES)
        chosen = {name: layer for name, layer in _linear_layers(host).items() if name.split(".")[-1] in wanted}
        embeddings = host.model.get_input_embeddings().weight
        tied = [name for name, layer in chosen.items() if layer.weight is embeddings]
        if tied:
            what = f"{tied[0]} is the base's input embeddings too, which would change with it"
            raise MethodDoesNotFit(what, where="method.targets")
        if not chosen:
            what = f"{type(host.model).__name__} has no linear layer called {' or '.join(sorted(wanted))}"
            raise MethodDoesNotFit(what, where="method.targets")
        self._transposed = any(isinstance(layer, Conv1D) for layer in chosen.values())
        self.changes = nn.ModuleDict()
        for name, layer in chosen.items():
            change = Change.new(*_sizes(layer), config.rank, config.alpha / config.rank, generator)
            self.changes[name.replace(".", "/")] = change  # a module's name holds no dots
            layer.register_forward_hook(_adding(change, lambda: self._on))

    def prompt(self) -> Prompt:
        return Prompt.empty()

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base as it is, inside."""
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def save(self, folder: Path, base: str) -> None:
        """PEFT's adapter_config.json and adapter_model.safetensors."""
        tensors = {}
        for name, tensor in self.changes.state_dict().items():
            layer, _, part = name.rpartition(".")
            tensors[f"{_PREFIX}{layer.replace('/', '.')}.lora_{part}.weight"] = tensor.cpu().contiguous()
        write_atomic(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
        write_json(folder / CONFIG, {
            "peft_type": "LORA", "task_type": _TASK_TYPES[self._kind], "r": self._config.rank,
            "lora_alpha": self._config.alpha, "lora_dropout": 0.0, "bias": "none", "inference_mode": True,
            "target_modules": sorted({name.split("/")[-1] for name in self.changes}),
            "fan_in_fan_out": self._transposed, "base_model_name_or_path": base,
        })  # fmt: skip


class Change(nn.Module):
    """B A x · alpha / rank."""

    def __init__(self, A: Tensor, B: Tensor, scale: float) -> None:
        """`A` [rank, inputs], `B` [outputs, rank]."""
        super().__init__()
        self.A, self.B, self.scale = nn.Parameter(A), nn.Parameter(B), scale

    @classmethod
    def new(cls, inputs: int, outputs: int, rank: int, scale: float, generator: torch.Generator) -> Change:
        """A as a linear layer starts, B from zero."""
        return cls(starting.linear(inputs, rank, generator).weight.detach(), torch.zeros(outputs, rank), scale)

    def forward(self, x: Tensor) -> Tensor:
        """[…, inputs] -> […, outputs], in the precision of what is trained."""
        return x.to(self.A.dtype) @ self.A.T @ self.B.T * self.scale


def load_changes(artifact: Path, host: BaseHost) -> dict[str, Change]:
    """An artifact's, by the names of their layers; none where it holds none. Raises BadInput."""
    folder = artifact / KEPT
    if not (folder / CONFIG).is_file() or (config := read_json(folder / CONFIG)).get("peft_type") != "LORA":
        return {}
    try:
        tensors, scale = load((folder / WEIGHTS).read_bytes()), config["lora_alpha"] / config["r"]
        layers, found = _linear_layers(host), {}
        for key in (key for key in tensors if key.endswith("lora_A.weight")):
            name = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
            change = Change(tensors[key], tensors[key.replace("lora_A", "lora_B")], scale).requires_grad_(False)
            if (change.A.shape[1], change.B.shape[0]) != _sizes(layers[name]) or len(change.A) != change.B.shape[1]:
                raise ValueError(name)
            found[name] = change.to(host.device)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError, TypeError, ZeroDivisionError) as error:
        raise BadInput("its LoRA does not fit this base, or is damaged", where=str(folder)) from error
    return found


@contextmanager
def beside(host: BaseHost, changes: Mapping[str, Change]) -> Iterator[None]:
    """The base with these changes, inside."""
    handles = add_changes(host, changes)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def add_changes(host: BaseHost, changes: Mapping[str, Change]) -> list[RemovableHandle]:
    """For good, or until the handles are removed."""
    layers = _linear_layers(host)
    return [layers[name].register_forward_hook(_adding(change)) for name, change in changes.items()]


def _adding(change: Change, on: Callable[[], bool] = lambda: True) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return (output + change(inputs[0])).to(output.dtype) if on() else output  # rounded once, as PEFT does

    return hook


def _linear_layers(host: BaseHost) -> dict[str, Any]:
    return {name: layer for name, layer in host.model.named_modules() if isinstance(layer, nn.Linear | Conv1D)}


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """(inputs, outputs)"""
    assert isinstance(layer.weight, Tensor)
    rows, columns = layer.weight.shape
    return (rows, columns) if isinstance(layer, Conv1D) else (columns, rows)
