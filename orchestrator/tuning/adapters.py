"""Prompts that other tools have trained, as artifact folders: `python -m orchestrator.tuning.adapters SPEC.json`.

SPEC.json: {"source": a PEFT folder or a .npy file, "out": folder to make, "name", "base": BaseSpec, "task": the task
of a recipe or null}.

PEFT's folder holds the folded prompt whichever network trained it (`get_prompt_embedding_to_save`). It stays in the
artifact as it came, so that it can be given back bit for bit.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from orchestrator.errors import BadInput, MethodDoesNotFit, NotFound, PtqError
from orchestrator.manifest import write_manifest
from orchestrator.paths import ArtifactPaths, folder_written_atomically, read_json, write_atomic, write_json
from orchestrator.recipe.bases import BaseFacts, read_base_facts
from orchestrator.recipe.fit_starts import npy_shape
from orchestrator.recipe.schema import JobRecipe
from orchestrator.tuning.artifact import save_prompt
from orchestrator.tuning.methods.lora import CONFIG, KEPT, WEIGHTS
from orchestrator.tuning.methods.starting import array
from orchestrator.tuning.prompt import Prompt

_METHODS = {"PROMPT_TUNING": "prompt-tuning", "P_TUNING": "p-tuning", "PREFIX_TUNING": "prefix-tuning"}
_TASKS = {"CAUSAL_LM": "causal", "SEQ_2_SEQ_LM": "seq2seq"}
#: A prompt is megabytes; a file that claims more is not one.
_MOST_BYTES = 4 << 30


def main(arguments: Sequence[str]) -> int:
    spec = read_json(Path(arguments[0]))
    try:
        take_in(Path(spec["source"]), Path(spec["out"]), name=spec["name"], base=spec["base"], task=spec["task"])
    except PtqError as error:
        print(f"ptq: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def take_in(
    source: Path, out: Path, *, name: str, base: Mapping[str, Any], task: Mapping[str, Any] | None = None
) -> None:
    """Write the artifact folder `out`, all at once or not at all.

    `base` is a `jobspec.BaseSpec` as a dict; its folder is looked at for the sizes. Raises NotFound, and BadInput for
    what is no prompt of this base.
    """
    facts = read_base_facts(Path(base["path"]))
    if source.is_dir():
        method, prompt, files = _from_peft(source, facts)
    else:
        method, prompt, files = "prompt-tuning", _from_npy(source, facts), {}
    recipe = _recipe(name, method, prompt.length, base, task)
    with folder_written_atomically(out) as folder:
        save_prompt(folder, prompt, {})
        for file, data in files.items():
            write_atomic(folder / KEPT / file, data)
        write_json(ArtifactPaths(folder).facts, _facts(name, method, prompt, base, recipe))
        write_manifest(folder)


def _from_npy(path: Path, facts: BaseFacts) -> Prompt:
    if not path.is_file():
        raise NotFound("no such file", where=str(path))
    shape = npy_shape(path)
    if len(shape) != 2 or facts.embedding_width not in {None, shape[1]}:
        raise BadInput(
            f"holds numbers of shape {list(shape)}; [virtual tokens, {facts.embedding_width}] fits this base",
            where=str(path),
        )
    try:
        return Prompt(array(path, (shape[0], shape[1])))
    except MethodDoesNotFit as error:
        raise BadInput(error.message, where=str(path)) from error


def _from_peft(folder: Path, facts: BaseFacts) -> tuple[str, Prompt, dict[str, bytes]]:
    config, files = _read_peft(folder)
    kind = _TASKS.get(str(config.get("task_type")))
    method = _METHODS.get(str(config.get("peft_type")))
    where = str(folder / CONFIG)
    if method is None:
        raise BadInput(
            f"{config.get('peft_type')!r} is not a prompt of virtual tokens",
            where=where,
            hint=f"there are: {_listed()}",
        )
    if kind is None:
        raise BadInput(
            f"a prompt for the task {config.get('task_type')!r} carries a head of one model class",
            where=where,
            hint=f"prompts for {' and '.join(_TASKS)} can be imported",
        )
    if kind != facts.kind:
        raise BadInput(f"it was trained on a {kind} base, this one is {facts.kind}", where=where)
    stored = _tensor(folder / WEIGHTS, files[WEIGHTS])
    length = _count(config, "num_virtual_tokens", where)
    prompt = (
        _prefix(config, stored, length, facts, where)
        if method == "prefix-tuning"
        else _front(stored, length, _count(config, "num_transformer_submodules", where, 1), facts, where)
    )
    return method, prompt, files


def _read_peft(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    files = {}
    for name in (CONFIG, WEIGHTS):
        path = folder / name
        if not path.is_file():
            pickled = (folder / "adapter_model.bin").is_file() and name == WEIGHTS
            hint = "save it again with `model.save_pretrained(folder)`; a pickle can run code when it is loaded"
            raise BadInput(f"no {name} in this folder", where=str(folder), hint=hint if pickled else "")
        if path.is_symlink() or path.stat().st_size > _MOST_BYTES:
            raise BadInput("not a plain file of a prompt's size", where=str(path))
        files[name] = path.read_bytes()
    try:
        config = read_json(folder / CONFIG)
    except ValueError as error:
        raise BadInput(f"not JSON: {error}", where=str(folder / CONFIG)) from error
    if not isinstance(config, dict):
        raise BadInput("not a PEFT configuration", where=str(folder / CONFIG))
    return config, files


def _tensor(path: Path, data: bytes) -> Tensor:
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BadInput("not a safetensors file, or a damaged one", where=str(path)) from error
    if set(tensors) != {"prompt_embeddings"} or tensors["prompt_embeddings"].dim() != 2:
        more = sorted(set(tensors) - {"prompt_embeddings"})
        what = f"holds {more[0]} too, which a prompt has no place for" if more else "holds no prompt_embeddings"
        raise BadInput(what, where=str(path))
    found = tensors["prompt_embeddings"]
    if not found.is_floating_point() or not torch.isfinite(found).all():
        raise BadInput("holds numbers that are not finite", where=str(path))
    return found


def _front(stored: Tensor, length: int, stacks: int, facts: BaseFacts, where: str) -> Prompt:
    """PEFT trains a prompt for the decoder too and never shows it to anybody: the encoder's rows come first."""
    if stored.shape != (length * stacks, facts.embedding_width):
        wanted = [length * stacks, facts.embedding_width]
        raise BadInput(f"holds numbers of shape {list(stored.shape)}; {wanted} fits this base", where=where)
    return Prompt(stored[:length].float().contiguous())


def _prefix(config: Mapping[str, Any], stored: Tensor, length: int, facts: BaseFacts, where: str) -> Prompt:
    """[n, L * 2 * heads * head_dim] -> [L, 2, heads, n, head_dim]."""
    if facts.kind != "causal":
        raise BadInput(
            "PEFT counts a decoder's positions from behind its prefix; here they start at 0: not the same",
            where=where,
            hint="of encoder-decoder bases prompt tuning and P-tuning can be imported",
        )
    layers, heads = _count(config, "num_layers", where), _count(config, "num_attention_heads", where)
    width = _count(config, "token_dim", where)
    if stored.shape != (length, layers * 2 * width) or width % heads:
        raise BadInput(f"holds numbers of shape {list(stored.shape)}, which its own sizes do not make", where=where)
    if layers != facts.layers:
        raise BadInput(f"has a prefix for {layers} layers, the base has {facts.layers}", where=where)
    found = stored.float().view(length, layers, 2, heads, width // heads).permute(1, 2, 3, 0, 4)
    return Prompt(keys_values={"decoder": found.contiguous()})


def _count(config: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or not 0 < value < 1_000_000:
        raise BadInput(f"{key} is {value!r}, not a count", where=where)
    return value


def _recipe(
    name: str, method: str, length: int, base: Mapping[str, Any], task: Mapping[str, Any] | None
) -> dict[str, Any]:
    """How `ptq predict` uses it: nobody told us how it was trained."""
    plain = {"type": "generate", "input": "{text}", "target": "{target}", "separator": ""}
    recipe = {
        "name": name,
        "description": "imported; dataset, steps and learning rate are not known",
        "base": {"model": base["id"]},
        "dataset": "unknown",
        "task": dict(task) if task is not None else plain,
        "method": {"type": method, "length": length},
        "train": {"steps": 1, "lr": 1.0, "seeds": [0]},
    }
    return JobRecipe.model_validate(recipe).model_dump(mode="json")


def _facts(
    name: str, method: str, prompt: Prompt, base: Mapping[str, Any], recipe: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "format": 1,
        "name": name,
        "method": method,
        "task": recipe["task"]["type"],
        "length": prompt.length,
        "slots": "none" if prompt.embeddings is None else "front",
        "base": {key: base[key] for key in ("id", "revision", "fingerprint", "kind", "companions") if key in base},
        "recipe": recipe,
        "metrics": {},
        "baseline": {},
        "samples": [],
    }


def _listed() -> str:
    return ", ".join(_METHODS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
