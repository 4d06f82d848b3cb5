"""Prompts that other tools have trained become artifacts. The conversion needs torch: it is another program's."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.jobspec import BaseSpec
from orchestrator.registry.artifacts import Artifact, get_artifact, keep_import, stage_artifact
from orchestrator.registry.storage.engine import Registry


def take_in(
    registry: Registry,
    source: Path,
    name: str,
    base: BaseSpec,
    task: Mapping[str, Any] | None,
    convert: Callable[[dict[str, Any]], None],
    *,
    now: float,
) -> Artifact:
    """`convert` writes the artifact folder that its request names as `out`, or raises; then it is kept.

    The same prompt of the same base again is the artifact that is there.
    """
    with tempfile.TemporaryDirectory(prefix="ptq-import-") as folder:
        out = Path(folder) / "artifact"
        request = {"source": str(source.absolute()), "out": str(out), "name": name, "base": asdict(base)}
        convert({**request, "task": None if task is None else dict(task)})
        registry.create()
        staged = stage_artifact(registry.paths, out)
    origin = {
        "format": "npy" if source.is_file() else "peft",
        "source": str(source.absolute()),
        "user": registry.settings.user,
    }
    with registry.write() as connection:
        number = keep_import(connection, staged, origin, now=now)
    return get_artifact(registry, f"a{number}")
