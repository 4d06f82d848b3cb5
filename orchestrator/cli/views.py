"""How the queue is shown: jobs and slots as rows and as JSON. What several verbs share."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.dispatch.fusing import Facts, default_limits
from orchestrator.dispatch.hosts import find_hosts
from orchestrator.dispatch.lock import holder
from orchestrator.dispatch.scheduler import Plan, Slot, schedule
from orchestrator.errors import BadInput
from orchestrator.registry import jobs, metrics, runs, workers
from orchestrator.registry.engine import Registry
from orchestrator.registry.jobs import Job
from orchestrator.settings import load_settings
from orchestrator.states import JobState

Metrics = dict[str, dict[str, float | None]]

NO_WORKER = "no worker is running here: start one with `ptq worker` (without a GPU: `ptq worker --cpu-slots 1`)"


@dataclass
class Queue:
    """One look at the registry."""

    jobs: list[Job]
    metrics: dict[int, Metrics]
    slots: list[dict[str, Any]] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)  #: why queued jobs wait
    company: dict[int, tuple[int, ...]] = field(default_factory=dict)  #: job -> the others in its run


def open_registry(*, create: bool = False) -> Registry:
    return Registry.open(load_settings(), create=create)


def one_job(registry: Registry, reference: str) -> Job:
    """The job that a person names. Raises NotFound, BadInput for a group of several."""
    with registry.read() as conn:
        found = jobs.list_jobs(conn, ids=jobs.resolve(conn, [reference]))
    if len(found) > 1:
        raise BadInput(f"{reference} has {len(found)} jobs; name one of them: {id_ranges(job.id for job in found)}")
    return found[0]


def worker_is_here(registry: Registry) -> bool:
    if holder(registry.paths.worker_lock) is not None:
        return True
    with registry.read() as conn:
        elsewhere = workers.present(conn, now=time.time())
    return any(worker.host != _host() for worker in elsewhere)


def look(
    registry: Registry,
    references: Sequence[str] = (),
    *,
    everything: bool = False,
    finished: int = 10,
    strangers: Mapping[str, str] | None = None,
) -> Queue:
    """The named jobs, or all that are unfinished and the last `finished` ones, in the order in which they start.

    `strangers`: who uses a slot outside the queue, where that is known.
    """
    with registry.read() as conn:
        if references:
            found = jobs.list_jobs(conn, ids=jobs.resolve(conn, references))
        elif everything:
            found = jobs.list_jobs(conn)
        else:
            open_states = [state for state in JobState if state is not JobState.FINISHED]
            found = jobs.list_jobs(conn, states=open_states) + jobs.recently_finished(conn, finished)
        numbers = metrics.latest(conn, [job.id for job in found])
        waiting = jobs.waiting_jobs(conn)
        endings = jobs.endings(conn, {other for job in waiting for other in job.after})
        leases = runs.live_leases(conn)
        present = workers.present(conn, now=time.time())
        device = "cuda" if any(slot.startswith("gpu:") for worker in present for slot in worker.slots) else "cpu"
        waiting = Facts().complete(conn, waiting, device=device) if present else waiting
        hosts = find_hosts(conn, registry.paths, leases)
    held = {lease.slot: lease.job_id for lease in leases}
    names = list(dict.fromkeys([slot for worker in present for slot in worker.slots]))
    plan = (
        schedule(
            waiting,
            [Slot(name, (strangers or {}).get(name, "")) for name in names],
            held,
            endings,
            hosts,
            default_limits(device),
        )
        if names
        else Plan()
    )
    finished_jobs = [job for job in found if job.state is JobState.FINISHED]
    unfinished = jobs.in_order_of_start(job for job in found if job.state is not JobState.FINISHED)
    slots = [_slot(name, next((lease for lease in leases if lease.slot == name), None)) for name in names]
    slots += [{**_slot(lease.slot, lease), "state": "unwatched"} for lease in leases if lease.slot not in names]
    company = {job: tuple(other for other in host.jobs if other != job) for host in hosts for job in host.jobs}
    return Queue(unfinished + finished_jobs, numbers, slots, dict(plan.reasons), company)


def job_json(job: Job, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """A job as `ptq status --json` promises it."""
    return {
        "id": job.id,
        "name": job.name,
        "user": job.user,
        "state": job.state,
        "result": job.result,
        "reason": job.reason,
        "attempt": job.attempt,
        "group": group_name(job.group_id),
        "base": job.base["id"],
        "method": job.method,
        "dataset": job.dataset,
        "progress": {"step": job.step, "steps": job.steps},
        "metrics": dict(numbers),
        "artifact": None if job.artifact_id is None else f"a{job.artifact_id}",
        "submitted_at": job.submitted_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
    }


JOB_COLUMNS = ("id", "group", "name", "user", "state", "progress", "metric", "reason")


def job_row(job: Job, queue: Queue) -> tuple[object, ...]:
    state = job.result or job.state
    why = queue.reasons.get(job.id, "") if job.state is JobState.QUEUED else ""
    said = (job.message or "").partition("\n")[0]
    others = queue.company.get(job.id, ())
    fused = f"with {'job' if len(others) == 1 else 'jobs'} {id_ranges(others)}" if others else ""
    reason = "; ".join(part for part in (job.reason if job.result else "", why or said, fused) if part)
    return (
        job.id,
        group_name(job.group_id),
        job.name,
        job.user,
        state,
        progress_of(job),
        leading_metric(job, queue.metrics.get(job.id, {})),
        reason,
    )


def progress_of(job: Job) -> str:
    if not job.steps:
        return str(job.step) if job.step else ""
    return f"{job.step}/{job.steps} {100 * job.step // job.steps}%"


def leading_metric(job: Job, numbers: Metrics) -> str:
    """The recipe's first metric on test or validation rows, else what there is, else the training loss."""
    for split in ("test", "validation", "train"):
        values = numbers.get(split, {})
        wanted = [*job.recipe["task"].get("metrics", []), "loss"]
        for name in wanted:
            if values.get(name) is not None:
                return f"{name if split != 'train' else 'train ' + name} {values[name]:.4g}"
    return ""


def comparison(numbers: Metrics) -> list[tuple[str, str, float | None, float | None]]:
    """(split, metric, tuned, untuned base) for every split that was evaluated."""
    rows = []
    for split in ("validation", "test"):
        tuned, base = numbers.get(split, {}), numbers.get(f"{metrics.BASE}{split}", {})
        rows += [(split, name, tuned.get(name), base.get(name)) for name in dict.fromkeys([*tuned, *base])]
    return rows


def group_name(group_id: int | None) -> str | None:
    return None if group_id is None else f"g{group_id}"


def id_ranges(ids: Iterable[int]) -> str:
    """`3-8, 11`"""
    parts: list[list[int]] = []
    for number in sorted(ids):
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


def clock(seconds: float | None) -> str:
    """A moment in the reader's time zone."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _slot(name: str, lease: runs.Lease | None) -> dict[str, Any]:
    if lease is None:
        nobody: dict[str, Any] = dict.fromkeys(("job", "run", "user", "since"))
        return {"slot": name, "state": "free", **nobody, "jobs": [], "detail": ""}
    several = f"jobs {id_ranges(lease.jobs)} in run {lease.run_id}"
    one = "" if lease.job_id is None else f"job {lease.job_id}"
    return {
        "slot": name,
        "state": "busy" if lease.jobs else "warm",
        "job": lease.job_id,
        "jobs": list(lease.jobs),
        "run": lease.run_id,
        "user": lease.user,
        "since": lease.since,
        "detail": several if len(lease.jobs) > 1 else one if lease.jobs else f"run {lease.run_id}, no job in it now",
    }


def _host() -> str:
    import socket

    return socket.gethostname()
