"""Which jobs may share a run, and how much of a step each one takes. The one place where that is decided.

Jobs with equal keys may share one copy of a base in one group of processes. The key names everything that a run
fixes for all of its jobs: the base in memory, the processes, the device. What a job brings of its own (method, data,
batch, optimizer, schedule, seed, clip, steps, limits) is not in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.registry import jobs
from orchestrator.registry.jobs import Submitted, Waiting

if TYPE_CHECKING:
    from sqlalchemy import Connection

#: Methods that train tensors of the job's own and leave the base as it is. A method that is not named here is alone.
FROZEN_BASE_METHODS = frozenset(
    {"prompt-tuning", "prefix-tuning", "p-tuning", "p-tuning-v2", "warp", "head", "prompt-design"}
)
#: A job that was in this many runs that went down while it shared them runs alone from then on.
CRASHES_IN_COMPANY = 2
#: `max_input_tokens` is a bound that most rows are far from; beyond this many it says nothing about a usual row.
ROW_TOKENS = 256
NEW_TOKENS = 64


@dataclass(frozen=True)
class Limits:
    """How full a worker fills its runs. Tokens are estimates (`tokens_a_step`), not measured memory: that is a later
    step, and until then a run that takes on too much halves its forwards when it runs out of memory."""

    jobs: int = 16
    tokens: int = 65_536
    fill: int = 16_384  #: from here on a free slot is a better place for a job than this run


def default_limits(device: str) -> Limits:
    """On a CPU every slot is a share of the cores: a free one is always the better place."""
    return Limits() if device == "cuda" else Limits(fill=0)


def fuse_key(job: Submitted, *, device: str) -> str | None:
    """Jobs with equal keys may share a run; None: this job may share with nobody."""
    recipe, base = job.recipe, job.base
    resources, wanted = recipe["resources"], recipe["base"]
    fuse = resources.get("fuse", "always")
    if fuse == "never" or must_be_alone(recipe):
        return None
    facts = {
        "base": [base["fingerprint"], base["revision"], base["kind"]],
        "folder": base["path"],  # the fingerprint is that of the weights; tokenizer and config lie beside them
        "dtype": wanted.get("dtype", "fp32"),
        "code": bool(wanted.get("trust_remote_code", False)),
        "processes": resources.get("gpus", 1),
        "zero": resources.get("zero"),
        "device": device,
        "memory": resources.get("memory"),
        "user": job.user if fuse == "user" else None,
    }
    return json.dumps(facts, sort_keys=True)


def must_be_alone(recipe: Mapping[str, Any]) -> bool:
    """What shares no forward: the base's own dropout is one switch for all rows, and a method may train the base."""
    train = recipe["train"]
    own_base = bool(train.get("base_dropout", False)) or train.get("base_lr") is not None
    return own_base or recipe["method"]["type"] not in FROZEN_BASE_METHODS


def tokens_a_step(recipe: Mapping[str, Any]) -> int:
    """An estimate of the tokens that the job adds to a forward: rows at a time x (virtual tokens + a usual row)."""
    train, task = recipe["train"], recipe["task"]
    rows = -(-train.get("batch_size", 16) // train.get("accumulation", 1))
    row = (recipe["method"].get("length") or 0) + min(task.get("max_input_tokens", 512), ROW_TOKENS)
    if task["type"] == "generate":
        row += min(task.get("max_new_tokens", 64), NEW_TOKENS)
    return int(rows * row)


def steps_left(recipe: Mapping[str, Any], step: int) -> int | None:
    """None where only the data will tell (epochs)."""
    steps = recipe["train"].get("steps")
    return None if steps is None else max(0, steps - step)


class Facts:
    """What jobs were submitted with, read from the registry once each: it never changes."""

    def __init__(self) -> None:
        self._known: dict[int, Submitted] = {}

    def complete(self, conn: Connection, waiting: list[Waiting], *, device: str) -> list[Waiting]:
        """The waiting jobs with key, tokens and steps."""
        self._known = {job.id: self._known[job.id] for job in waiting if job.id in self._known}
        self._known |= jobs.submitted(conn, {job.id for job in waiting} - set(self._known))
        crashes = jobs.crashes_in_company(conn, [job.id for job in waiting if job.attempt > 0])
        return [_completed(job, self._known[job.id], crashes.get(job.id, 0), device) for job in waiting]


def _completed(job: Waiting, known: Submitted, crashes: int, device: str) -> Waiting:
    return replace(
        job,
        key=None if suspect(job, crashes) else fuse_key(known, device=device),
        tokens=tokens_a_step(known.recipe),
        steps=steps_left(known.recipe, job.step),
        time_limit=known.recipe["resources"].get("time_limit"),
    )


def suspect(job: Waiting, crashes: int) -> bool:
    """Runs went down with it: from the second on, or when only one try is left, it is tried by itself."""
    last_try = job.counted_attempts + 1 >= job.max_attempts
    return crashes >= CRASHES_IN_COMPANY or (crashes > 0 and last_try)
