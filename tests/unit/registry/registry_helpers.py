"""A registry with datasets, finished jobs and their artifacts in it; no training."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from queue_helpers import BASE, DIGEST, open_registry, recipe

from orchestrator.data.rows import ReadOptions
from orchestrator.data.staging import stage
from orchestrator.manifest import write_manifest
from orchestrator.paths import write_json
from orchestrator.registry import jobs
from orchestrator.registry.artifacts import Artifact, get_artifact, keep_artifact, stage_artifact
from orchestrator.registry.datasets import DatasetVersion, add_version
from orchestrator.registry.jobs import NewJob
from orchestrator.registry.storage.engine import Registry
from orchestrator.registry.storage.tables import jobs as job_table


def registry_at(home: Path) -> Registry:
    return open_registry(home)


def add_dataset(registry: Registry, folder: Path, name: str, rows: Sequence[dict[str, str]]) -> DatasetVersion:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with stage(registry.paths, {"train": [path]}, ReadOptions()) as staged:
        return add_version(registry, name, staged, user="ada", now=1.0)


def safetensors(numbers: Sequence[float]) -> bytes:
    """A prompt of one number a row."""
    facts = {"dtype": "F32", "shape": [len(numbers), 1], "data_offsets": [0, 4 * len(numbers)]}
    header = json.dumps({"embeddings": facts}).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack(f"<{len(numbers)}f", *numbers)


def finished_job(
    registry: Registry,
    folder: Path,
    version: DatasetVersion,
    *,
    number: float = 0.5,
    init: dict[str, Any] | None = None,
    method: str = "prompt-tuning",
    more: str = "",
) -> Artifact:
    """A job that succeeded and what it left."""
    wanted = recipe()
    if init is not None:
        wanted["method"]["init"] = init
    new = NewJob("fake", wanted, "name: fake\n", 1, method, BASE, version.id, 1, 50, 3)
    with registry.write() as conn:
        (job,) = jobs.add_jobs(conn, [new], user="ada", command=["ptq", "submit"], at=2.0)
        done = {"state": "finished", "result": "succeeded", "attempt": 1, "finished_at": 3.0}
        conn.execute(sa.update(job_table).where(job_table.c.id == job).values(done))
    made = folder / f"artifact-{job}"
    made.mkdir(parents=True)
    (made / "prompt.safetensors").write_bytes(safetensors([number, number]))
    if more:
        (made / more).parent.mkdir(parents=True, exist_ok=True)
        (made / more).write_text("{}")
    facts = {"name": "fake", "method": method, "length": 2, "slots": "front", "job": job, "recipe": wanted}
    facts["base"] = {"id": "tiny", "revision": "r", "fingerprint": DIGEST, "kind": "causal"}
    facts["dataset"] = {"name": version.name, "version": version.version, "digest": version.digest}
    write_json(made / "artifact.json", facts)
    write_manifest(made)
    staged = stage_artifact(registry.paths, made)
    with registry.write() as conn:
        keep_artifact(conn, staged, job_id=job, attempt=1, now=4.0)
    return get_artifact(registry, str(job))
