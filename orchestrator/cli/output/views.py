"""How the queue is shown: jobs and slots as rows and as JSON. What several verbs share."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.cli.output import render
from orchestrator.dispatch.lock import holder
from orchestrator.dispatch.running.processes import NoProc, boot_id
from orchestrator.dispatch.scheduling.admission import default_limits
from orchestrator.dispatch.scheduling.box import Host, Slot
from orchestrator.dispatch.scheduling.fusing import Facts
from orchestrator.dispatch.scheduling.hosts import Pace, paces
from orchestrator.dispatch.scheduling.line import Line
from orchestrator.dispatch.scheduling.reasons import id_ranges
from orchestrator.dispatch.scheduling.scheduler import Plan
from orchestrator.dispatch.scheduling.survey import Survey, survey
from orchestrator.errors import BadInput
from orchestrator.recipe.scores import SCORED, TELLING, TRAIN
from orchestrator.registry import jobs, metrics, runs, workers
from orchestrator.registry.jobs import Job
from orchestrator.registry.queue import count_queued
from orchestrator.registry.reservations import Reservation
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import Policy, load_policy
from orchestrator.states import LIVE, JobState

if TYPE_CHECKING:
    from sqlalchemy import Connection

Metrics = dict[str, dict[str, float | None]]

SMALL_USE = 36.0  #: slot-seconds: a hundredth of an hour; whoever has used less and has nothing here is left out

NO_WORKER = "no worker is running here: start one with `ptq worker` (without a GPU: `ptq worker --cpu-slots 1`)"


@dataclass
class Queue:
    """One look at the registry."""

    jobs: list[Job]
    metrics: dict[int, Metrics]
    slots: list[dict[str, Any]] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)  #: why queued jobs wait
    company: dict[int, tuple[int, ...]] = field(default_factory=dict)  #: job -> the others in its run
    ends: dict[int, float | None] = field(default_factory=dict)  #: live job -> when it is expected to end
    shares: list[dict[str, Any]] = field(default_factory=list)  #: of each user
    reservations: list[Reservation] = field(default_factory=list)
    order: list[int] = field(default_factory=list)  #: of what waits; a reservation under minus its number
    paused: str = ""  #: why nothing starts
    fault: str = ""  #: of queue.toml
    more: int = 0  #: queued jobs that are not among `jobs`
    watched: bool = True  #: a worker is here; without one runs go on, and nothing starts
    now: float = 0.0


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
        heard_of = workers.present(conn, now=time.time())
    try:
        here = boot_id()
    except NoProc:  # no worker works on such a system
        here = ""
    return any(worker.boot_id != here for worker in heard_of)  # a lock is seen on its own machine


def look(
    registry: Registry,
    references: Sequence[str] = (),
    *,
    everything: bool = False,
    finished: int = 10,
    waiting: int | None = None,
    slots: Mapping[str, Slot] | None = None,
) -> Queue:
    """The named jobs, or those that run, those that wait (the first so many) and the last `finished` ones, in the order
    in which they start.

    `slots`: what is known of slots beside the registry: who uses them outside the queue, what is wrong with them.
    """
    now = time.time()
    policy, fault = _policy(registry)
    with registry.read() as conn:
        present = workers.present(conn, now=now)
        device = "cuda" if any(slot.startswith("gpu:") for worker in present for slot in worker.slots) else "cpu"
        seen = survey(
            conn, registry.paths, Facts(registry.paths), device=device, policy=policy, now=now, hosts_too=True
        )
        names = list(dict.fromkeys([slot for worker in present for slot in worker.slots]))
        drained = next((f"drained by {worker.drained_by}" for worker in present if worker.drained_by), "")
        at_hand = [(slots or {}).get(name) or Slot(name) for name in names]
        plan = seen.plan(at_hand, default_limits(device), paused=drained) if names else Plan(order=_by_age(seen))
        found, more = _wanted(conn, references, plan, everything=everything, finished=finished, waiting=waiting)
        numbers = metrics.latest(conn, [job.id for job in found])
        live = [job for job in found if job.state in LIVE]
        ends = paces(conn, live, now)
    queue = Queue(
        found, numbers, reasons=dict(plan.reasons), order=list(plan.order), more=more, now=now,
        paused=seen.paused or drained, fault=fault, ends={number: _end(pace) for number, pace in ends.items()},
        watched=bool(names),
    )  # fmt: skip
    _fill_slots(queue, seen, names)
    return queue


def _policy(registry: Registry) -> tuple[Policy, str]:
    """What is in force, and what is wrong with queue.toml: a fault in it must not hide the queue from anybody."""
    try:
        return load_policy(registry.settings.home), ""
    except BadInput as error:
        return Policy(), str(error)


def _fill_slots(queue: Queue, seen: Survey, names: Sequence[str]) -> None:
    queue.shares = _shares(seen)
    queue.reservations = seen.reservations
    held = {lease.slot: lease for lease in seen.leases}
    queue.slots = [_slot(name, held.get(name)) for name in names]
    queue.slots += [{**_slot(name, lease), "state": "unwatched"} for name, lease in held.items() if name not in names]
    for host in seen.hosts:
        _show_slowdown(queue, host)
        queue.company |= {job: tuple(other for other in host.jobs if other != job) for job in host.jobs}
        if host.reservation is not None:
            _show_reservation(queue, host)


def _wanted(
    conn: Connection, references: Sequence[str], plan: Plan, *, everything: bool, finished: int, waiting: int | None
) -> tuple[list[Job], int]:
    """The jobs to show, in the order in which they start, finished ones last; and how many more are queued."""
    place = {number: at for at, number in enumerate(plan.order)}
    if references or everything:
        found = jobs.list_jobs(conn, ids=jobs.resolve(conn, references) if references else None)
        ended = [job for job in found if job.state is JobState.FINISHED]
        queued = 0
    else:
        queued = count_queued(conn)
        if waiting is None or queued <= waiting:
            found = jobs.list_jobs(conn, states=[*LIVE, JobState.QUEUED])
            queued = 0
        else:
            first = [number for number in plan.order if number > 0][:waiting]
            found = jobs.list_jobs(conn, ids=first) + jobs.list_jobs(conn, states=LIVE)
            queued -= len(first)
        ended = jobs.recently_finished(conn, finished)
    going = [job for job in found if job.state is not JobState.FINISHED]
    going.sort(key=lambda job: (job.state is JobState.QUEUED, place.get(job.id, len(place)), job.id))
    return going + ended, max(0, queued)


def _by_age(seen: Survey) -> list[int]:
    """Without a worker nothing is placed, but there is an order."""
    line = Line(seen.waiting, seen.usage, {}, seen.policy, seen.now)
    return [job.id for job in line]


def _end(pace: Pace) -> float | None:
    known = [moment for moment in (pace.expected, pace.at_the_latest) if moment is not None]
    return min(known, default=None)


def _shares(seen: Survey) -> list[dict[str, Any]]:
    """What each user has taken and holds, most first."""
    holding: dict[str, float] = {}
    for host in seen.hosts:
        for user in host.users:
            holding[user] = holding.get(user, 0.0) + len(host.slots) / len(host.users)
    waiting: dict[str, int] = {}
    for job in seen.waiting:
        waiting[job.user] = waiting.get(job.user, 0) + 1
    total = sum(seen.usage.values())
    users = sorted({*seen.usage, *holding, *waiting}, key=lambda user: (-seen.usage.get(user, 0.0), user))
    return [
        {
            "user": user,
            "hours": seen.usage.get(user, 0.0) / 3600,
            "part": seen.usage.get(user, 0.0) / total if total else 0.0,
            "holds": holding.get(user, 0.0),
            "waiting": waiting.get(user, 0),
            "quota": seen.policy.quota(user),
        }
        for user in users
        if holding.get(user) or waiting.get(user) or seen.usage.get(user, 0.0) >= SMALL_USE
    ]


def _show_slowdown(queue: Queue, host: Host) -> None:
    """What sharing costs the one that loses most by it, where that has been measured."""
    if host.cost is None or len(host.loads) < 2:
        return
    for slot in queue.slots:
        if slot["slot"] in host.slots:
            slot["detail"] += f", a step up to {host.cost.slowdown(host.loads):.1f} times as long as alone"


def _show_reservation(queue: Queue, host: Host) -> None:
    one = next(one for one in queue.reservations if one.id == host.reservation)
    until = f", until {clock(one.until)}" if one.holder is None else " while its command runs"
    for slot in queue.slots:
        if slot["slot"] in host.slots:
            slot |= {"state": "reserved", "user": one.user, "since": one.started_at}
            slot["detail"] = f"r{one.id}{until}" + (f": {one.note}" if one.note else "")


def job_json(job: Job, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """A job as `ptq status --json` promises it, but for what depends on the rest of the queue."""
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


JOB_COLUMNS = ("id", "group", "name", "user", "state", "progress", "ends in", "metric", "reason")


def job_row(job: Job, queue: Queue) -> tuple[object, ...]:
    state = job.result or job.state
    why = waits(job, queue) or ""
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
        _left(queue.ends.get(job.id), queue.now),
        leading_metric(job, queue.metrics.get(job.id, {})),
        reason,
    )


def _left(end: float | None, now: float) -> str:
    return "" if end is None else render.duration(max(0.0, end - now))


def waits(job: Job, queue: Queue) -> str | None:
    """Why a queued job does not start, in words."""
    if job.state is not JobState.QUEUED:
        return None
    return queue.reasons.get(job.id) or queue.paused or (f"paused by {job.paused_by}" if job.paused_by else None)


def reservation_row(one: Reservation, queue: Queue) -> tuple[object, ...]:
    """Among the jobs: one that waits for its slots."""
    why = queue.reasons.get(-one.id, "")
    return (f"r{one.id}", None, one.note or "reservation", one.user, "queued", "", "", "", why)


def progress_of(job: Job) -> str:
    if not job.steps:
        return str(job.step) if job.step else ""
    return f"{job.step}/{job.steps} {100 * job.step // job.steps}%"


def leading_metric(job: Job, numbers: Metrics) -> str:
    """The recipe's first metric on test or validation rows, else what there is, else the training loss."""
    for split in (*TELLING, TRAIN):
        values = numbers.get(split, {})
        wanted = [*job.recipe["task"].get("metrics", []), "loss"]
        for name in wanted:
            if values.get(name) is not None:
                return f"{name if split != TRAIN else 'train ' + name} {values[name]:.4g}"
    return ""


def comparison(numbers: Metrics) -> list[tuple[str, str, float | None, float | None]]:
    """(split, metric, tuned, untuned base) for every split that was evaluated."""
    rows = []
    for split in SCORED:
        tuned, base = numbers.get(split, {}), numbers.get(f"{metrics.BASE}{split}", {})
        rows += [(split, name, tuned.get(name), base.get(name)) for name in dict.fromkeys([*tuned, *base])]
    return rows


def group_name(group_id: int | None) -> str | None:
    return None if group_id is None else f"g{group_id}"


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
