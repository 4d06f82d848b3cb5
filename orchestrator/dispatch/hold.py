"""Cards for a command, for as long as it runs: asked for in the line where a worker gives cards away, else taken free.

Both are reservations with a holder: they end when the command gives them back, and when it is gone without doing so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from orchestrator.dispatch.lock import holder
from orchestrator.dispatch.people import holder_lives, why_over
from orchestrator.dispatch.running import cards, processes
from orchestrator.dispatch.scheduling.gpus import Gpu, GpuSource, NoGpu, fault_of, gpu_source, used_by
from orchestrator.dispatch.submit import check_possible
from orchestrator.errors import BadInput, NotAllowed, PtqError
from orchestrator.registry import controls, jobs, reservations, runs, workers
from orchestrator.registry.runs import Claimant, Lease
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import POLICY_FILE, load_policy

if TYPE_CHECKING:
    from sqlalchemy import Connection


class NoFreeGpu(PtqError):
    """Every GPU is in use."""


def ask(registry: Registry, count: int, *, seconds: float, note: str) -> int:
    """Stand in line; the number of a reservation that ends with this process. `seconds`: for planning."""
    now = time.time()
    check_possible(registry, count, user=registry.settings.user, now=now)
    with registry.write() as conn:
        return _add(registry, conn, count, seconds, note, now)


def take(registry: Registry, count: int, *, seconds: float, note: str, otherwise: str = "") -> int:
    """The same where no worker would give cards: free ones, at once. Raises NoFreeGpu, BadInput.

    `otherwise`: what else the person may do, for the hint.
    """
    now, host = time.time(), registry.box
    check_possible(registry, count, user=registry.settings.user, now=now)
    gpus = _gpus(gpu_source(registry.settings), otherwise)
    with registry.write() as conn:
        _end_what_is_over(conn, now)
        paused = controls.get(conn, controls.PAUSED)
        if paused is not None:
            raise NoFreeGpu(f"the queue is paused by {paused.by}: nothing starts", hint="`ptq resume` lets it go on")
        leases = runs.live_leases(conn, host)
        _check_quota(registry, conn, count, leases, otherwise)
        held = {lease.slot: lease for lease in leases}
        why = {gpu.slot: _why_not(gpu, held.get(gpu.slot)) for gpu in gpus}
        free = [gpu.slot for gpu in gpus if not why[gpu.slot]]
        if len(free) < count:
            said = "; ".join(f"{slot}: {reason}" for slot, reason in why.items() if reason)
            raise NoFreeGpu(f"{count} asked for, {len(free)} free ({said})", hint=_later(otherwise))
        number = _add(registry, conn, count, seconds, note, now)
        reservations.start(conn, number, free[:count], _claimant(conn, host, now), at=now)
    return number


@contextmanager
def against_other_homes(registry: Registry, names: Sequence[str]) -> Iterator[None]:
    """These slots are this process's for all queues of the box, as a run's are. Raises NoFreeGpu."""
    gpus = gpu_source(registry.settings).look() if any(name.startswith("gpu:") for name in names) else []
    try:
        with cards.holding([gpu.claim for gpu in gpus if gpu.slot in names]):
            yield
    except cards.Held as error:
        raise NoFreeGpu(f"{error}: a run of another PTQ_HOME has it", hint="try again in a moment") from None


def check_granted(registry: Registry, visible: Sequence[str]) -> str | None:
    """The slot of the card that CUDA_VISIBLE_DEVICES names, which is nobody else's; None: the driver knows none so.

    Raises NotAllowed, which says whose it is.
    """
    try:
        gpu = _named(gpu_source(registry.settings).look(), visible[0])
    except NoGpu:
        return None  # torch will say
    if gpu is None:
        return None
    uid, user = registry.settings.uid, registry.settings.user
    with registry.read() as conn:
        held = {lease.slot: lease for lease in runs.live_leases(conn, registry.box)}
        mine = {one.run_id for one in reservations.unfinished(conn) if one.uid == uid}
    lease = held.get(gpu.slot)
    others = sorted({process.user for process in gpu.processes if process.user not in {"", user}})
    if not (others or gpu.given) if lease is None else lease.run_id in mine:
        return gpu.slot
    hint = "`ptq predict --gpu` takes a free card where that variable is unset; with --cpu it runs on the CPU"
    where = f"CUDA_VISIBLE_DEVICES={visible[0]}"
    raise NotAllowed(f"{gpu.slot} is in use: {_why_not(gpu, lease)}", where=where, hint=hint)


def gives(registry: Registry, *, cards: bool) -> bool:
    """Whether a worker gives slots here, `cards`: GPUs. One that is busy may be silent: its lock says that it lives.

    One that has been asked to leave gives no more.
    """
    is_here = holder(registry.paths.worker_lock) is not None
    with registry.read() as conn:
        mine = workers.newest(conn, registry.box) if is_here else None
        elsewhere = [one for one in workers.present(conn, now=time.time()) if one.boot_id != processes.boot_id()]
    found = [one for one in (mine, *elsewhere) if one is not None and not one.drained_by]
    return any(not cards or slot.startswith("gpu:") for one in found for slot in one.slots)


def _add(registry: Registry, conn: Connection, count: int, seconds: float, note: str, now: float) -> int:
    mine = registry.settings
    return reservations.add(
        conn, user=mine.user, uid=mine.uid, slots=count, seconds=seconds, note=note, at=now,
        holder=processes.mark(os.getpid()),
    )  # fmt: skip


def _gpus(source: GpuSource, otherwise: str) -> list[Gpu]:
    try:
        return source.look()
    except NoGpu as error:
        raise BadInput(error.message, where=error.where, hint=otherwise) from error


def _named(gpus: Sequence[Gpu], name: str) -> Gpu | None:
    """By its number in PCI order, its UUID or the beginning of that, as CUDA reads it."""
    found = [gpu for gpu in gpus if name in {str(gpu.index), gpu.uuid}]
    if not found and name.startswith("GPU-"):
        found = [gpu for gpu in gpus if gpu.uuid.startswith(name)]
    return found[0] if len(found) == 1 else None


def _why_not(gpu: Gpu, lease: Lease | None) -> str:
    """Empty: it is free."""
    if lease is None:
        return used_by(gpu) or fault_of(gpu)
    return "reserved" if lease.job_id is None else f"job {lease.job_id} of {lease.user}"


def _later(otherwise: str) -> str:
    return f"try again later, or {otherwise}" if otherwise else "try again later"


def _check_quota(registry: Registry, conn: Connection, count: int, leases: Sequence[Lease], otherwise: str) -> None:
    """With what is held already, counted as the scheduler does: who shares a run holds a part of it."""
    quotas = load_policy(registry.settings.home).quotas_on(registry.settings.user)
    persons = {one.run_id: [one.user] for one in reservations.unfinished(conn)} if quotas else {}
    has: dict[str, float] = {}
    for lease in leases if quotas else ():
        users = persons.get(lease.run_id) or [job.user for job in jobs.live_jobs_of(conn, lease.run_id)]
        for user in users:
            has[user] = has.get(user, 0.0) + 1 / len(users)
    for whose, quota, members in quotas:
        have = sum(has.get(user, 0.0) for user in members)
        if have + count > quota + 1e-6:
            said = f"{count} asked for, {whose} has {have:g} of at most {quota}"
            raise NoFreeGpu(said, where=POLICY_FILE, hint=_later(otherwise))


def _end_what_is_over(conn: Connection, now: float) -> None:
    """While no worker looked: commands were killed, and time went by."""
    for one in reservations.unfinished(conn):
        if why := why_over(one, holder_lives(one), now):
            reservations.end(conn, one.id, by=why, at=now, unseen=True, up_since=processes.booted_at())


def _claimant(conn: Connection, host: str, now: float) -> Claimant:
    """In whose name the slots are held: a worker's that gives away other slots, or one that comes and goes at once."""
    boot, pid = processes.boot_id(), os.getpid()
    here = [worker for worker in workers.present(conn, now=now) if worker.host == host]
    if here:
        return Claimant(here[0].id, host, boot)
    started = processes.start_time(pid)
    number = workers.pass_by(conn, host=host, pid=pid, pid_started=started, boot_id=boot, at=now)
    return Claimant(number, host, boot)
