"""From a claim to a supervisor: the folders are written, then the supervisor is born in a session of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from orchestrator.dispatch.launcher import LaunchCommand, free_port, run_environment
from orchestrator.dispatch.processes import TOKEN
from orchestrator.jobspec import BaseSpec, DatasetSpec, JobSpec, RunSpec
from orchestrator.paths import HomePaths, RunPaths, write_atomic
from orchestrator.recipe.schema import JobRecipe
from orchestrator.registry.jobs import Job
from orchestrator.registry.runs import Claim
from orchestrator.settings import child_environment


def start_run(
    paths: HomePaths, job: Job, claim: Claim, slots: Sequence[str], *, device: str, threads: int, command: LaunchCommand
) -> int:
    """Write the folders and start the supervisor; its pid."""
    write_job(paths, job, claim.attempt)
    spec = run_spec(paths, job, claim, slots, device=device, threads=threads)
    run = paths.run(claim.run_id)
    spec.write(run.spec)
    return spawn_supervisor(run, spec, command(spec, run))


def write_job(paths: HomePaths, job: Job, attempt: int) -> None:
    folder = paths.job(job.id)
    if not folder.recipe.exists():
        write_atomic(folder.recipe, job.source)
    name, _, version = job.dataset.rpartition("@")
    dataset = DatasetSpec(name, int(version), job.dataset_digest, str(paths.dataset(job.dataset_digest)))
    JobSpec(
        job=job.id, attempt=attempt, name=job.name, seed=job.seed, recipe=job.recipe,
        base=BaseSpec(**job.base), dataset=dataset, folder=str(folder.root),
    ).write(folder.spec)  # fmt: skip


def run_spec(paths: HomePaths, job: Job, claim: Claim, slots: Sequence[str], *, device: str, threads: int) -> RunSpec:
    resources = JobRecipe.model_validate(job.recipe).resources
    return RunSpec(
        run=claim.run_id,
        token=claim.token,
        jobs=[str(paths.job(job.id).root)],
        processes=len(slots),
        device=device,
        gpus=[slot.removeprefix("gpu:") for slot in slots] if device == "cuda" else [],
        zero=resources.zero,
        threads=threads,
        port=free_port(),
        time_limit_seconds=resources.time_limit,
    )


def spawn_supervisor(run: RunPaths, spec: RunSpec, command: Sequence[str]) -> int:
    """A process in its own session, so that neither Ctrl-C nor the end of this process reaches it.

    -P: no module is taken from the folder in which the worker happens to run.
    """
    arguments = [sys.executable, "-P", "-m", "orchestrator.dispatch.supervisor", str(run.root), *command]
    environment = child_environment(**run_environment(spec), **{TOKEN: spec.token})
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions: list[tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(run.log), append, 0o644),
        (os.POSIX_SPAWN_OPEN, 2, str(run.log), append, 0o644),
    ]
    return os.posix_spawn(arguments[0], arguments, environment, file_actions=actions, setsid=True)
