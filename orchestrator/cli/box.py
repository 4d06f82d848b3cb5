"""This box as `ptq doctor` shows it: the disk, the GPUs as the driver sees them and as torch does."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from orchestrator.cli.common import size
from orchestrator.cli.output import render
from orchestrator.cli.programs import pipe_of, program

if TYPE_CHECKING:
    from orchestrator.registry.storage.engine import Registry


def look_at_the_box(registry: Registry) -> dict[str, Any]:
    """`torch`: what it sees, where the driver shows a GPU. `torch_fault`: why it sees less than this shell may."""
    from orchestrator.dispatch.scheduling.gpus import NoGpu, driver_version, fault_of, gpu_source, used_by

    facts: dict[str, Any] = {"home": str(registry.paths.root), "gpus": [], "no_gpu": "", "torch": None}
    facts |= {"free": shutil.disk_usage(registry.paths.root).free, "driver": None, "torch_fault": ""}
    try:
        for gpu in gpu_source(registry.settings).look():
            said = [f"in use by {user}" if (user := used_by(gpu)) else "", fault_of(gpu)]
            facts["gpus"].append(", ".join([f"{gpu.name} ({gpu.slot})", *(one for one in said if one)]))
    except NoGpu as error:
        facts["no_gpu"] = f"none ({error.message})" if error.message else "none"
        return facts
    facts["torch"] = seen = _what_torch_sees()
    if registry.settings.fake_gpus is None:  # no driver is behind a file
        facts["driver"] = driver_version()
        granted = registry.settings.visible_gpus  # None: all
        expected = len(facts["gpus"]) if granted is None else min(len(granted), len(facts["gpus"]))
        if len(seen["gpus"]) < expected:
            found = f"torch sees {len(seen['gpus'])} of {expected}"
            facts["torch_fault"] = f"{found}: {seen['why_none'] or 'a container hides the others'}"
    return facts


def tell_box(box: dict[str, Any]) -> None:
    render.say(f"GPUs: {', '.join(box['gpus']) or box['no_gpu']}")
    if box["torch"] is not None:
        seen = box["torch"]
        build = "without CUDA" if seen["built_for"] is None else f"for CUDA {seen['built_for']}"
        driver = f"; driver {box['driver']}" if box["driver"] else ""
        render.say(f"torch {seen['torch']}, built {build}, sees {len(seen['gpus'])} of {len(box['gpus'])}{driver}")
    if box["torch_fault"]:
        render.say(f"wrong: {box['torch_fault']}")
    render.say(f"disk: {size(box['free'])} free in {box['home']}")


def _what_torch_sees() -> dict[str, Any]:
    """As a run here would: with all cards that this shell may see."""
    try:
        with program("orchestrator.training.cards", {}, stdout=subprocess.PIPE, cards={}) as process:
            said = pipe_of(process.stdout).read()
        return dict(json.loads(said))
    except ValueError:
        fault = "torch does not start: `python -c 'import torch'` says why"
        return {"torch": None, "built_for": None, "gpus": [], "why_none": fault}
