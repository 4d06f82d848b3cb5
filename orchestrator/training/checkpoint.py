"""Checkpoints: a job's whole state is its prompt, the optimizer's moments of it, and the number of steps done.

Data order, dropout and schedule are pure functions of (seed, step), so they need no state of their own. A checkpoint is
a folder `step-<n>` with state.safetensors, state.json and, written last, a manifest; it is whole or it does not exist.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, optim

from orchestrator import failpoints
from orchestrator.jobspec import JobSpec
from orchestrator.manifest import manifest_faults, write_manifest
from orchestrator.paths import JobPaths, folder_written_atomically, read_json, write_json

_KEPT = 2  # the newest, and the one before it should the disk have damaged the newest
_TENSORS, _STATE = "state.safetensors", "state.json"
#: By which a step follows from a recipe. Higher where the same recipe has come to mean another loss or other draws; 1:
#: soft labels, targets without room for an end mark, dropout on prefixes and the decay of a base are no longer as they
#: were before this was written down (0).
RULES = 1


@dataclass(frozen=True)
class Checkpoint:
    step: int  #: optimizer steps done
    evaluated: int  #: the last step whose evaluation was reported; a stop may fall into one
    identity: str  #: of what is trained; a checkpoint of another recipe is not resumed
    tensors: dict[str, Tensor]
    rules: int = RULES  #: by which the steps were taken


def identity_of(spec: JobSpec) -> str:
    """What must be equal for a checkpoint, or answers that are kept, to be this job's: recipe, base and data."""
    facts = [spec.recipe, spec.base.fingerprint, spec.dataset.digest]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def save_checkpoint(paths: JobPaths, state: Checkpoint) -> None:
    with folder_written_atomically(paths.checkpoint(state.step)) as folder:
        ready = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
        save_file(ready, folder / _TENSORS)
        facts = {"format": 1, "step": state.step, "evaluated": state.evaluated, "identity": state.identity}
        write_json(folder / _STATE, facts | {"rules": state.rules})
        write_manifest(folder)
    failpoints.reach("training.checkpointed")
    for old in _folders(paths)[_KEPT:] + _left_behind(paths):
        shutil.rmtree(old, ignore_errors=True)


def newest_checkpoint(paths: JobPaths, identity: str) -> Checkpoint | None:
    """The newest complete checkpoint of this recipe; damaged ones are passed over."""
    for folder in _folders(paths):
        if manifest_faults(folder):
            continue
        state = read_json(folder / _STATE)
        if state["identity"] == identity:
            tensors = load_file(folder / _TENSORS)
            rules = int(state.get("rules", 0))
            return Checkpoint(int(state["step"]), int(state["evaluated"]), identity, tensors, rules)
    return None


def optimizer_tensors(optimizer: optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter number>.<name>` -> tensor. Group settings come from the recipe."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _folders(paths: JobPaths) -> list[Path]:
    """Newest first."""
    found = [p for p in paths.checkpoints.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name)]
    return sorted(found, key=lambda p: int(p.name[5:]), reverse=True)


def _left_behind(paths: JobPaths) -> list[Path]:
    """What an attempt that was killed while it wrote has left; nobody else writes here."""
    return [p for p in paths.checkpoints.glob(".step-*") if p.suffix in {".partial", ".old"}]
