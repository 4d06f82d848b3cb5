"""What a run computes with: versions, the code itself, processors. Kept with the job and its artifact."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import pynvml
import torch

import orchestrator
from orchestrator import __version__

_PACKAGES = (
    "torch", "transformers", "accelerate", "deepspeed", "datasets", "safetensors", "tokenizers", "numpy", "pyarrow",
)  # fmt: skip


@functools.cache
def versions() -> dict[str, str]:
    """Of ptq, Python and the packages that numbers depend on."""
    return {"ptq": __version__, "python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


@functools.cache
def code_digest() -> str:
    """sha256 over every source file of this ptq: a version number says nothing of a checkout with changes in it."""
    root = Path(orchestrator.__file__).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(f"{path.relative_to(root).as_posix()}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return "sha256:" + total.hexdigest()


def hardware(device: str, processes: int) -> dict[str, Any]:
    """`device`: cpu or cuda. Of GPUs those that this process sees."""
    found: dict[str, Any] = {
        "device": device,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "host": platform.node(),
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
    }
    if device != "cuda":
        return found
    cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    found["gpus"] = [{"model": card.name, "bytes": card.total_memory, "uuid": str(card.uuid)} for card in cards]
    return found | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "driver": _driver()}


def environment(device: str, processes: int) -> dict[str, Any]:
    """All of it, as events and artifacts carry it."""
    return {"versions": versions(), "code": code_digest(), "hardware": hardware(device, processes)}


def _version(package: str) -> str:
    """A missing package must not cost a trained prompt at its very end."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _driver() -> str | None:
    """Of NVIDIA; None where its library cannot say. A run never fails for want of it."""
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # whatever a driver's library raises: this is a note, not a need
        return None
