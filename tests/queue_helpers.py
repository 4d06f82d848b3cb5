"""What tests of the queue share: a registry with jobs in it that need no base and no data."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from orchestrator.registry import jobs
from orchestrator.registry.artifacts import keep_artifact, stage_artifact
from orchestrator.registry.jobs import Job, NewJob
from orchestrator.registry.storage.engine import Registry
from orchestrator.registry.storage.tables import dataset_versions, datasets
from orchestrator.registry.storage.tables import jobs as job_table
from orchestrator.settings import load_settings
from orchestrator.weights import fingerprint

FAKE_TRAINING = Path(__file__).parent / "fake_training.py"
DIGEST = "sha256:" + "0" * 64
BASE = {"id": "tiny", "path": "/nowhere", "revision": "r", "fingerprint": DIGEST, "kind": "causal"}


def open_registry(home: Path) -> Registry:
    registry = Registry.open(load_settings({"PTQ_HOME": str(home), "PTQ_USER": "ada"}), create=True)
    registry.create()
    return registry


def recipe(behaviour: str = "", steps: int = 40, **resources: Any) -> dict[str, Any]:
    return {
        "name": "fake",
        "description": behaviour,  # tells fake_training.py what to do
        "base": {"model": "tiny"},
        "dataset": "rows@1",
        "task": {"type": "generate", "input": "{source}", "target": "{target}"},
        "method": {"type": "prompt-tuning", "length": 2},
        "train": {"steps": steps, "lr": 0.1, "seeds": [1]},
        "resources": {"gpus": 1, **resources},
    }


def add_jobs(
    registry: Registry,
    count: int = 1,
    *,
    behaviour: str = "",
    steps: int = 40,
    slots: int = 1,
    priority: int = 50,
    max_attempts: int = 3,
    after: Sequence[int] = (),
    after_any: Sequence[int] = (),
    time_limit: float | None = None,
    fuse: str = "always",
    user: str = "ada",
) -> list[int]:
    made = NewJob(
        name="fake",
        recipe=recipe(behaviour, steps, gpus=slots, time_limit=time_limit, max_attempts=max_attempts, fuse=fuse),
        source="name: fake\n",
        seed=1,
        method="prompt-tuning",
        base=BASE,
        dataset_version_id=_dataset_version(registry),
        slots=slots,
        priority=priority,
        max_attempts=max_attempts,
    )
    with registry.write() as conn:
        return jobs.add_jobs(
            conn, [made] * count, user=user, command=["ptq"], at=time.time(), after=after, after_any=after_any
        )  # fmt: skip


def keep_trained(home: Path, base: Path, folders: Sequence[Path]) -> None:
    """What a run has left, as the artifacts of jobs 1, 2, … of the home's registry, on the base in that folder."""
    registry = open_registry(home)
    facts = {"id": "tiny", "path": str(base), "revision": "r", "fingerprint": fingerprint(base), "kind": "causal"}
    for job, folder in zip(add_jobs(registry, len(folders)), folders, strict=True):
        staged = stage_artifact(registry.paths, folder)
        with registry.write() as conn:
            conn.execute(sa.update(job_table).where(job_table.c.id == job).values(base=facts, attempt=1))
            keep_artifact(conn, staged, job_id=job, attempt=1, now=0.0)
    registry.close()


def get(registry: Registry, job_id: int) -> Job:
    with registry.read() as conn:
        return jobs.get_job(conn, job_id)


def let_go(registry: Registry, *job_ids: int) -> None:
    """Jobs whose behaviour is `held` may end."""
    for job_id in job_ids:
        (registry.paths.job(job_id).root / "let-go").touch()


def wait_until(condition: Callable[[], bool], *, seconds: float = 20.0, what: str = "") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def _dataset_version(registry: Registry) -> int:
    with registry.write() as conn:
        known = conn.execute(sa.select(dataset_versions.c.id)).scalar()
        if known is not None:
            return int(known)
        conn.execute(sa.insert(datasets).values(id=1, name="rows", created_at=0.0))
        row = {"dataset_id": 1, "version": 1, "digest": DIGEST, "fields": ["source", "target"], "splits": {"train": 4}}
        row |= {"bad_rows": 0, "source": {}, "created_at": 0.0, "created_by": "ada"}
        return int(conn.execute(sa.insert(dataset_versions).values(row)).inserted_primary_key[0])


CONFIG = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 7,
    "n_embd": 4,
    "n_layer": 1,
    "n_positions": 16,
}

RECIPE = """\
name: tiny
base: {base}
dataset: rows
task: {{type: generate, input: "{{source}}", target: "{{target}}", max_new_tokens: 4}}
method: {{type: prompt-tuning, length: 2}}
train: {{steps: 5, lr: 0.1}}
"""


def base_folder(folder: Path, value: float = 0.0) -> Path:
    """What the ledger needs to see of a base: its config and its weights, 28 times the value."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps(
        {"transformer.wte.weight": {"dtype": "F32", "shape": [7, 4], "data_offsets": [0, 112]}}
    ).encode()
    (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + struct.pack("<28f", *[value] * 28)
    )
    return folder


def recipe_file(folder: Path, text: str = RECIPE) -> Path:
    """A recipe on a base beside it."""
    base = folder / "base"
    path = folder / "tiny.yaml"
    path.write_text(text.format(base=base if base.exists() else base_folder(base)))
    return path
