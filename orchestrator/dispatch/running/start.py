"""From a claim to a supervisor: the folders are written, then the supervisor is born in a session of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.dispatch.running.launcher import LaunchCommand, free_port, run_environment
from orchestrator.dispatch.running.places import own_job_folder
from orchestrator.dispatch.running.processes import TOKEN
from orchestrator.dispatch.scheduling.admission import Limits
from orchestrator.dispatch.scheduling.fusing import cost_name
from orchestrator.jobspec import BaseSpec, DatasetSpec, JobSpec, RunSpec, Ticket
from orchestrator.paths import HomePaths, RunPaths, write_atomic, write_json
from orchestrator.registry.jobs import Job, Submitted
from orchestrator.registry.runs import Claim
from orchestrator.settings import GRACE_SECONDS, training_environment


@dataclass(frozen=True)
class Manner:
    """How a worker starts its runs."""

    device: str
    threads: int
    command: LaunchCommand
    limits: Limits = field(default_factory=Limits)
    keep_warm: float = 0.0  #: seconds
    grace: float = GRACE_SECONDS
    memory: int | None = None  #: bytes for a run whose jobs name no limit
    model: str = ""  #: of the device; empty: costs are neither measured nor looked for
    turns: bool = False  #: each job of a run has forwards of its own


def start_run(
    paths: HomePaths,
    found: Sequence[Job],
    claim: Claim,
    slots: Sequence[str],
    how: Manner,
    *,
    key: str | None,
    held: Sequence[int] = (),
) -> int:
    """Start the supervisor of a run with these jobs, whose folders are written (`write_job`); its pid.

    `key`: jobs with this one may join it; None: nobody may, for example because its job is suspected of crashes.
    `held`: descriptors that the run's processes inherit (`cards.holding`).
    """
    spec = run_spec(paths, found, claim, slots, how, key=key)
    run = paths.run(claim.run_id)
    spec.write(run.spec)  # first: it says whose the folder is
    for job in found:  # as if they had joined: one way to know who is in a run
        write_json(run.joined / ticket(paths, job).name, asdict(ticket(paths, job)))
    if spec.fuse_key is not None:
        run.inbox.mkdir(parents=True, exist_ok=True)
    return spawn_supervisor(run, spec, how.command(spec, run), held)


def write_job(paths: HomePaths, job: Job, run: str) -> None:
    """What the training program is told of the job in its present attempt; `run`: the token of its run."""
    folder = paths.job(job.id)
    own_job_folder(folder, job, run)
    if not folder.recipe.exists():
        write_atomic(folder.recipe, job.source)
    name, _, version = job.dataset.rpartition("@")
    dataset = DatasetSpec(name, int(version), job.dataset_digest, str(paths.dataset(job.dataset_digest)))
    JobSpec(
        job=job.id, attempt=job.attempt, name=job.name, seed=job.seed, recipe=job.recipe,
        base=BaseSpec(**job.base), dataset=dataset, folder=str(folder.root),
    ).write(folder.spec)  # fmt: skip


def ticket(paths: HomePaths, job: Job) -> Ticket:
    """With which the job joins a run under way."""
    return Ticket(job.id, job.attempt, str(paths.job(job.id).root), time_limit(job))


def time_limit(job: Job) -> float | None:
    limit = job.recipe["resources"].get("time_limit")
    return None if limit is None else float(limit)


def run_spec(
    paths: HomePaths, found: Sequence[Job], claim: Claim, slots: Sequence[str], how: Manner, *, key: str | None
) -> RunSpec:
    given = [time_limit(job) for job in found]
    return RunSpec(
        run=claim.run_id,
        token=claim.token,
        jobs=[str(paths.job(job.id).root) for job in found],
        processes=len(slots),
        device=how.device,
        gpus=[slot.removeprefix("gpu:") for slot in slots] if how.device == "cuda" else [],
        zero=found[0].recipe["resources"].get("zero"),
        threads=how.threads,
        port=claim.port or free_port(),
        time_limit_seconds=None if None in given else max(limit for limit in given if limit is not None),
        grace_seconds=how.grace,
        memory_bytes=found[0].recipe["resources"].get("memory") or how.memory,
        fuse_key=key,
        fuse_jobs=how.limits.jobs,
        fuse_tokens=how.limits.tokens,
        fuse_fill=how.limits.fill,
        fuse_slots_first=how.limits.slots_first,
        fuse_slowdown=how.limits.slowdown,
        fuse_gain=how.limits.gain,
        fuse_turns=how.turns,
        calibration=_calibration(paths, found[0], how) if key is not None else None,
        keep_warm_seconds=how.keep_warm,
    )


def _calibration(paths: HomePaths, job: Job, how: Manner) -> str | None:
    if not how.model:
        return None
    submitted = Submitted(job.user, job.recipe, job.base)
    return str(paths.calibration(cost_name(submitted, model=how.model, threads=how.threads)))


def spawn_supervisor(run: RunPaths, spec: RunSpec, command: Sequence[str], held: Sequence[int] = ()) -> int:
    """A process in its own session, so that neither Ctrl-C nor the end of this process reaches it.

    -P: no module is taken from the folder in which the worker happens to run.
    """
    arguments = [sys.executable, "-P", "-m", "orchestrator.dispatch.running.supervisor", str(run.root), *command]
    environment = training_environment(**run_environment(spec), **{TOKEN: spec.token})
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions: list[Any] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(run.log), append, 0o644),
        (os.POSIX_SPAWN_OPEN, 2, str(run.log), append, 0o644),
    ]
    above = max(held, default=0) + 1  # a copy by dup2 is inherited, also by what the supervisor starts
    actions += [(os.POSIX_SPAWN_DUP2, one, above + number) for number, one in enumerate(held)]
    return os.posix_spawn(arguments[0], arguments, environment, file_actions=actions, setsid=True)
