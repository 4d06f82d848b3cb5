"""`prompt.safetensors`: the trained prompt and, where there is one, the classification head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from orchestrator.errors import BadInput, NotFound
from orchestrator.paths import ArtifactPaths, write_atomic
from orchestrator.tuning.prompt import Prompt

_HEAD = "head."


def save_prompt(folder: Path, prompt: Prompt, head: Mapping[str, Tensor]) -> None:
    """Write the folded prompt, all at once or not at all."""
    tensors = prompt.tensors() | {_HEAD + name: tensor for name, tensor in head.items()}
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(ArtifactPaths(folder).prompt, save(ready, metadata={"format": "pt"}))


def load_prompt(folder: Path) -> tuple[Prompt, dict[str, Tensor]]:
    """(prompt, head's tensors). Raises NotFound, or BadInput for a file that is anything else."""
    path = ArtifactPaths(folder).prompt
    if not path.is_file():
        raise NotFound(f"there is no {path.name} in this folder", where=str(folder))
    try:
        tensors = load(path.read_bytes())
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BadInput("not a safetensors file, or a damaged one", where=str(path)) from error
    head = {name.removeprefix(_HEAD): tensor for name, tensor in tensors.items() if name.startswith(_HEAD)}
    try:
        return Prompt.from_tensors({n: t for n, t in tensors.items() if not n.startswith(_HEAD)}), head
    except BadInput as error:
        raise BadInput(error.message, where=str(path)) from error
