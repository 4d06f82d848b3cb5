"""LoRA (Hu et al. 2022): a low-rank change beside some of the base's linear layers; the row to compare prompts with.

The layers stay as they are: hooks add to what they give, so the base moves in no bit. What is kept are the files that
PEFT's `save_pretrained` writes; whoever uses them adds the product to the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
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
            change = Change(*_sizes(layer), config.rank, config.alpha / config.rank, generator)
            self.changes[name.replace(".", "/")] = change  # a module's name holds no dots
            layer.register_forward_hook(self._adding(change))

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

    def _adding(self, change: Change) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + change(inputs[0]).to(output.dtype) if self._on else output

        return hook


class Change(nn.Module):
    """B A x · alpha / rank: A as a linear layer starts, B from zero."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.A = nn.Parameter(starting.linear(inputs, rank, generator).weight.detach())
        self.B = nn.Parameter(torch.zeros(outputs, rank))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """[…, inputs] -> […, outputs], in the precision of what is trained."""
        return x.to(self.A.dtype) @ self.A.T @ self.B.T * self.scale


def merged_weights(artifact: Path, host: BaseHost) -> dict[str, Tensor]:
    """The base's weights with an artifact's change added, by their names; none where it holds none. Raises BadInput."""
    folder = artifact / KEPT
    if not (folder / CONFIG).is_file() or (config := read_json(folder / CONFIG)).get("peft_type") != "LORA":
        return {}
    try:
        tensors = load((folder / WEIGHTS).read_bytes())
        layers, found = _linear_layers(host), {}
        for key in (key for key in tensors if key.endswith("lora_A.weight")):
            name = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
            change = tensors[key.replace("lora_A", "lora_B")] @ tensors[key] * (config["lora_alpha"] / config["r"])
            own = layers[name].weight.detach()
            found[f"{name}.weight"] = (own.float() + _as_weight(layers[name], change).to(own.device)).to(own.dtype)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError, TypeError, ZeroDivisionError) as error:
        raise BadInput("its LoRA does not fit this base, or is damaged", where=str(folder)) from error
    return found


def _linear_layers(host: BaseHost) -> dict[str, Any]:
    return {name: layer for name, layer in host.model.named_modules() if isinstance(layer, nn.Linear | Conv1D)}


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """(inputs, outputs)"""
    assert isinstance(layer.weight, Tensor)
    rows, columns = layer.weight.shape
    return (rows, columns) if isinstance(layer, Conv1D) else (columns, rows)


def _as_weight(layer: nn.Module, change: Tensor) -> Tensor:
    return change.T if isinstance(layer, Conv1D) else change
