"""From the plan to a run: claim a job with its slots, write its folder, start its supervisor; or hand it to a run."""

from __future__ import annotations

import errno
import traceback
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from orchestrator import failpoints
from orchestrator.dispatch.running import cards
from orchestrator.dispatch.running.launcher import free_port
from orchestrator.dispatch.running.outcome import Tries, after
from orchestrator.dispatch.running.places import clear_job_folder, clear_run_folder
from orchestrator.dispatch.running.reconcile import Runs
from orchestrator.dispatch.running.settle import settle
from orchestrator.dispatch.running.start import Manner, start_run, ticket, write_job
from orchestrator.dispatch.scheduling.slots import Slots
from orchestrator.errors import PtqError
from orchestrator.registry import jobs, runs
from orchestrator.registry.jobs import Job
from orchestrator.registry.queue import Waiting
from orchestrator.registry.runs import Claimant
from orchestrator.registry.storage.engine import Registry
from orchestrator.states import Reason


class Taken(PtqError):
    """Somebody has taken a slot outside the queue."""


@dataclass(frozen=True)
class Starter:
    """Starts and joins runs for a worker, `me`, which looks after them as `runs`."""

    registry: Registry
    slots: Slots
    me: Claimant
    how: Manner
    runs: Runs
    log: Callable[[str], None]
    clock: Callable[[], float]

    def check_still_free(self, names: Collection[str]) -> None:
        """Just before a claim: nobody has come since the plan was made. Raises Taken; nothing is written then.

        Not inside it: a driver may take its time, and nobody else can write to the registry meanwhile.
        """
        for slot in self.slots.look(()):
            if slot.name in names and not slot.usable:
                raise Taken(f"{slot.name} was free a moment ago: {slot.taken_by or slot.fault}")

    def start(self, job: Waiting, companions: Sequence[Waiting], names: tuple[str, ...], *, alone: str = "") -> None:
        with self.registry.read() as conn:
            port = free_port(runs.ports(conn, self.me.host))
        self.check_still_free(names)
        try:
            with self.slots.holding(names) as held:
                self._start_on(job, companions, names, held, port=port, alone=alone)
        except cards.Held as error:
            raise Taken(f"{error} was free a moment ago: a run of another PTQ_HOME has it") from None

    def _start_on(
        self, job: Waiting, companions: Sequence[Waiting], names: tuple[str, ...], held: Sequence[int], *,
        port: int, alone: str,
    ) -> None:  # fmt: skip
        with self.registry.write() as conn:
            claim = runs.claim(
                conn, job.id, job.attempt, names, self.me, token=uuid.uuid4().hex, at=self.clock(), port=port,
                alone=alone,
            )  # fmt: skip
            if claim is None:
                return  # cancelled, or taken, since we looked
            joined = [
                one for one in companions
                if runs.join(conn, one.id, one.attempt, claim.run_id, self.me, at=self.clock()) is not None
            ]  # fmt: skip
            found = jobs.list_jobs(conn, ids=[one.id for one in (job, *joined)])
        found.sort(key=lambda one: one.id != job.id)
        failpoints.reach("worker.claimed")
        for one in found:
            self.log(f"job {one.id} ({one.name}): starts on {', '.join(names)} as run {claim.run_id}")
        ready = [one for one in found if self._folder_is_written(one, claim.token)]
        paths = self.registry.paths
        try:
            clear_run_folder(paths.run(claim.run_id), claim.run_id, claim.token, say=self.log)
            pid = start_run(paths, ready, claim, names, self.how, key=job.key, held=held) if ready else None
        except Exception as error:
            for one in ready:
                self._not_started(one, error)
            pid = None
        if pid is not None:
            self.runs.started(claim.run_id, pid)
            failpoints.reach("worker.started")
            return
        with self.registry.write() as conn:
            runs.end_run(conn, claim.run_id, exit_record=None, at=self.clock())

    def join(self, job: Waiting, run_id: int) -> None:
        """What goes wrong after the claim, `Runs.look_after` puts right: it delivers the ticket or requeues the job."""
        with self.registry.write() as conn:
            claim = runs.join(conn, job.id, job.attempt, run_id, self.me, at=self.clock())
            if claim is None:
                return
            found = jobs.get_job(conn, job.id)
        failpoints.reach("worker.joined")
        self.log(f"job {job.id} ({found.name}): joins run {run_id}")
        if self._folder_is_written(found, claim.token):
            ticket(self.registry.paths, found).deliver(self.registry.paths.run(run_id))

    def _folder_is_written(self, job: Job, run: str) -> bool:
        try:
            clear_job_folder(self.registry, job, run, actor=self.runs.actor, at=self.clock(), say=self.log)
            write_job(self.registry.paths, job, run)
        except Exception as error:
            self._not_started(job, error)
            return False
        return True

    def _not_started(self, job: Job, error: Exception) -> None:
        self.log(f"job {job.id}: {''.join(traceback.format_exception(error))}")
        tries = Tries(job.counted_attempts, job.max_attempts)
        full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
        reason = Reason.DISK_FULL if full else Reason.LAUNCH_FAILED
        ending = after(reason, f"the run could not be started: {error}", tries)
        with self.registry.write() as conn:
            settle(conn, job, ending, actor=self.runs.actor, at=self.clock())
