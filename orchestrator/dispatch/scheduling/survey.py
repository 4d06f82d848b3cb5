"""One look at the queue: all that the scheduler is told, read in one snapshot. The worker and `ptq status` share it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.dispatch.scheduling.admission import Limits
from orchestrator.dispatch.scheduling.box import Host, Slot
from orchestrator.dispatch.scheduling.fusing import Facts
from orchestrator.dispatch.scheduling.hosts import find_hosts
from orchestrator.dispatch.scheduling.line import CLASS
from orchestrator.dispatch.scheduling.scheduler import Plan, schedule
from orchestrator.paths import HomePaths
from orchestrator.registry import controls, jobs, reservations, runs, usage
from orchestrator.registry.queue import DEEP, Waiting, waiting_jobs
from orchestrator.registry.reservations import Reservation
from orchestrator.registry.runs import Lease
from orchestrator.settings import Policy
from orchestrator.states import JobResult

if TYPE_CHECKING:
    from sqlalchemy import Connection

RESERVATION_PRIORITY = 50  #: a person at the keyboard stands in line as a normal job does


@dataclass
class Survey:
    waiting: list[Waiting]
    leases: list[Lease]
    endings: dict[int, JobResult | None]
    hosts: list[Host]
    reservations: list[Reservation]
    usage: dict[str, float]  #: user -> decayed slot-seconds
    paused: str  #: why nothing starts; empty: it does
    policy: Policy
    now: float

    @property
    def held(self) -> dict[str, int | None]:
        return {lease.slot: lease.job_id for lease in self.leases}

    def plan(
        self, slots: Sequence[Slot], limits: Limits, *, only: Collection[int] | None = None, paused: str = ""
    ) -> Plan:
        waiting = self.waiting if only is None else [job for job in self.waiting if job.id in only]
        return schedule(
            waiting, slots, self.held, self.endings, self.hosts, limits,
            policy=self.policy, usage=self.usage, now=self.now, paused=paused or self.paused,
        )  # fmt: skip


def survey(
    conn: Connection,
    paths: HomePaths,
    facts: Facts,
    *,
    device: str,
    policy: Policy,
    now: float,
    host: str | None = None,
    hosts_too: bool = False,
) -> Survey:
    """`host`: slots of that box only. `hosts_too`: look at the runs even where nobody waits."""
    waiting = waiting_jobs(conn, gain=CLASS / policy.ageing, deep=DEEP)
    waiting = facts.complete(conn, waiting, device=device)
    people = reservations.unfinished(conn)
    waiting += reservations.in_line(people, priority=RESERVATION_PRIORITY)
    leases = runs.live_leases(conn, host)
    look = bool(waiting) or hosts_too
    return Survey(
        waiting=waiting,
        leases=leases,
        endings=jobs.endings(conn, {other for job in waiting for other in job.after}),
        hosts=find_hosts(conn, paths, leases, facts, reservations=people, now=now) if look else [],
        reservations=people,
        usage=usage.used(conn, half_life=policy.half_life, now=now),
        paused=_paused(controls.get(conn, controls.PAUSED)),
        policy=policy,
        now=now,
    )


def _paused(control: controls.Control | None) -> str:
    if control is None:
        return ""
    why = f" ({control.value})" if control.value else ""
    return f"the queue is paused by {control.by}{why}: `ptq resume` lets it go on"
