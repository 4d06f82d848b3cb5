"""Which jobs may share a run at all, and what each brings to it. Whether it pays is `admission`'s.

Jobs with equal keys may share one copy of a base in one group of processes. The key names everything that a run
fixes for all of its jobs: the base in memory, the processes, the device. What a job brings of its own (method, data,
batch, optimizer, schedule, seed, clip, steps, limits) is not in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import __version__
from orchestrator.cost import Cost, Load
from orchestrator.dispatch.scheduling.loads import load_of
from orchestrator.paths import HomePaths
from orchestrator.registry import history, jobs
from orchestrator.registry.datasets import row_bytes
from orchestrator.registry.jobs import Submitted
from orchestrator.registry.queue import Waiting

if TYPE_CHECKING:
    from sqlalchemy import Connection

#: Methods that leave the base as it is (`pet` does without `train.base_lr`). A method that is not named here is alone.
FROZEN_BASE_METHODS = frozenset(
    {"prompt-tuning", "prefix-tuning", "p-tuning", "p-tuning-v2", "warp", "head", "prompt-design", "pet"}
)
#: A job that was in this many runs that went down while it shared them runs alone from then on.
CRASHES_IN_COMPANY = 2


def fuse_key(job: Submitted, *, device: str) -> str | None:
    """Jobs with equal keys may share a run; None: this job may share with nobody."""
    recipe, base = job.recipe, job.base
    resources, wanted = recipe["resources"], recipe["base"]
    if alone_because(recipe):
        return None
    fuse = resources.get("fuse", "always")
    facts = {
        "base": [base["fingerprint"], base["revision"], base["kind"]],
        "folder": [base["path"], base.get("companions")],  # the fingerprint is that of the weights alone
        "dtype": wanted.get("dtype", "fp32"),
        "code": bool(wanted.get("trust_remote_code", False)),
        "processes": resources.get("gpus", 1),
        "zero": resources.get("zero"),
        "device": device,
        "memory": resources.get("memory"),
        "user": job.user if fuse == "user" else None,
    }
    return json.dumps(facts, sort_keys=True)


def alone_because(recipe: Mapping[str, Any]) -> str:
    """Why a job with this recipe shares no run; empty: it may."""
    train, method = recipe["train"], recipe["method"]["type"]
    if recipe["resources"].get("fuse", "always") == "never":
        return "its recipe says `fuse: never`"
    if train.get("base_dropout", False):
        return "`train.base_dropout` is one switch for all rows of a forward"
    if train.get("base_lr") is not None:
        return "`train.base_lr` trains the base itself"
    if method == "autoprompt":
        return "autoprompt asks the base many times a step, and its neighbours would wait"
    if recipe["method"].get("weights") == "accuracy":
        return "its patterns are measured on all training rows first, and its neighbours would wait"
    return "" if method in FROZEN_BASE_METHODS else f"{method} has the base for itself"


def cost_name(job: Submitted, *, model: str, threads: int) -> str:
    """The file name of what steps cost on the job's base, on this model of device, with the programs at hand."""
    resources, wanted = job.recipe["resources"], job.recipe["base"]
    facts = {
        "base": [job.base["fingerprint"], job.base["kind"]],
        "dtype": wanted.get("dtype", "fp32"),
        "processes": resources.get("gpus", 1),
        "zero": resources.get("zero"),
        "device": [model, threads],
        "versions": [__version__, *(_version(name) for name in ("torch", "transformers"))],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def steps_left(recipe: Mapping[str, Any], step: int) -> int | None:
    """None where only the data will tell (epochs)."""
    steps = recipe["train"].get("steps")
    return None if steps is None else max(0, steps - step)


class Facts:
    """What jobs were submitted with and what they bring, found out once each: it never changes."""

    def __init__(self, paths: HomePaths, *, model: str = "", threads: int = 1) -> None:
        """`model` and `threads` of the device that jobs are placed on; empty: measured costs are not looked for."""
        self._paths, self._model, self._threads = paths, model, threads
        self._known: dict[int, Submitted] = {}
        self._loads: dict[int, Load] = {}
        self._costs: dict[Path, tuple[float, Cost | None]] = {}

    def complete(self, conn: Connection, waiting: list[Waiting], *, device: str) -> list[Waiting]:
        """The waiting jobs with key, load, cost and steps."""
        self._known = {job.id: self._known[job.id] for job in waiting if job.id in self._known}
        self._known |= jobs.submitted(conn, {job.id for job in waiting} - set(self._known))
        crashes = history.crashes_in_company(conn, [job.id for job in waiting if job.attempt > 0])
        return [self._completed(job, self._known[job.id], crashes.get(job.id, 0), device) for job in waiting]

    def loads(self, conn: Connection, ids: Collection[int]) -> list[Load]:
        """Of jobs that are in a run."""
        for number, known in jobs.submitted(conn, set(ids) - set(self._loads)).items():
            self._loads[number] = self._load(known)
        return [self._loads[number] for number in ids if number in self._loads]

    def cost(self, path: Path) -> Cost | None:
        """What was measured, read again when it has changed."""
        try:
            changed = path.stat().st_mtime
        except OSError:
            return None
        if self._costs.get(path, (None, None))[0] != changed:
            self._costs[path] = (changed, Cost.read(path))
        return self._costs[path][1]

    def _completed(self, job: Waiting, known: Submitted, crashes: int, device: str) -> Waiting:
        if job.id not in self._loads:
            self._loads[job.id] = self._load(known)
        crashed = suspect(job, crashes)
        alone = f"{crashes} run{'s' * (crashes > 1)} went down with it" if crashed else alone_because(known.recipe)
        measured = None
        if self._model and not alone:
            measured = self.cost(self._paths.calibration(cost_name(known, model=self._model, threads=self._threads)))
        return replace(
            job,
            key=None if alone else fuse_key(known, device=device),
            alone=alone,
            load=self._loads[job.id],
            cost=measured,
            steps=steps_left(known.recipe, job.step),
            time_limit=known.recipe["resources"].get("time_limit"),
        )

    def _load(self, known: Submitted) -> Load:
        size = None
        if known.dataset_digest:
            size = row_bytes(self._paths.dataset(known.dataset_digest), known.rows)
            size = size and size / max(1, known.fields)
        return load_of(known.recipe, known.base, size, known.recipe["resources"].get("gpus", 1))


def suspect(job: Waiting, crashes: int) -> bool:
    """Runs went down with it: from the second on, or when only one try is left, it is tried by itself."""
    last_try = job.counted_attempts + 1 >= job.max_attempts
    return crashes >= CRASHES_IN_COMPANY or (crashes > 0 and last_try)
