"""`ptq worker`: places jobs on this box's slots and looks after their runs.

It may be killed at any moment: runs go on under their supervisors, and the next worker takes them over.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
import traceback
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from orchestrator import failpoints
from orchestrator.dispatch import processes
from orchestrator.dispatch.access import check_may_work
from orchestrator.dispatch.fusing import Facts, Limits, default_limits
from orchestrator.dispatch.hosts import find_hosts
from orchestrator.dispatch.launcher import LaunchCommand, threads_per_process, training_command
from orchestrator.dispatch.lock import worker_lock
from orchestrator.dispatch.outcome import Tries, after, seconds_to_wait
from orchestrator.dispatch.reconcile import Runs, request_stop
from orchestrator.dispatch.scheduler import Plan, Slot, schedule
from orchestrator.dispatch.slots import Slots
from orchestrator.dispatch.start import Manner, start_run, ticket, write_job
from orchestrator.dispatch.strikes import Strikes, is_the_machines
from orchestrator.errors import PtqError, RegistryUnusable
from orchestrator.registry import jobs, runs, workers
from orchestrator.registry.engine import Registry
from orchestrator.registry.jobs import Job, Waiting
from orchestrator.registry.runs import Claimant, Run
from orchestrator.states import JobResult, JobState, Reason

POLL = 0.25  #: seconds between looks
BEAT = 5.0  #: seconds between heartbeats
FAULT_PAUSE = 1.0

Log = Callable[[str], None]
Result = TypeVar("Result")


@dataclass
class Ended:
    """Why a worker left."""

    signal: int | None = None
    running: list[int] = field(default_factory=list)  #: runs that go on without it
    never: dict[int, str] = field(default_factory=dict)  #: jobs that can never run here, and why


class Worker:
    def __init__(
        self,
        registry: Registry,
        slots: Slots,
        *,
        command: LaunchCommand = training_command,
        log: Log = print,
        clock: Callable[[], float] = time.time,
        only: Collection[int] | None = None,
        limits: Limits | None = None,
        keep_warm: float = 0.0,
    ) -> None:
        """`only`: start none but these jobs. `limits`: how full a run gets. `keep_warm`: seconds an empty one stays."""
        self.registry, self.slots = registry, slots
        self.log, self.clock, self.only = log, clock, only
        self.how = Manner(
            slots.device,
            threads_per_process(len(slots.names)),
            command,
            limits or default_limits(slots.device),
            keep_warm,
            registry.settings.grace_seconds,
            registry.settings.run_memory,
        )
        self._facts = Facts()
        self._resting = False  #: whether a job waits for its next try
        self._signal: int | None = None
        self._strikes = Strikes()

    def work(self, *, until_idle: bool = False, until: Callable[[], bool] = lambda: False) -> Ended:
        """Work until a signal, until `until` says so, or with `until_idle` until nothing is left to do here.

        Raises WorkerPresent when this home has a worker on this box.
        """
        check_may_work(self.registry)
        with worker_lock(self.registry.paths.worker_lock), self._signals():
            self._register()
            try:
                return self._loop(until_idle, until)
            finally:
                with self.registry.write() as conn:
                    workers.leave(conn, self.me.worker_id, at=self.clock())

    def _loop(self, until_idle: bool, until: Callable[[], bool]) -> Ended:
        beaten = time.monotonic()
        while True:
            plan, open_runs = self._guarded(self.look) or (None, [])
            if self._signal is not None or (until() and not self._ending(open_runs)):
                return Ended(signal=self._signal, running=[run.id for run in open_runs])
            if until_idle and plan is not None and not open_runs and self._idle(plan):
                return Ended(never={job: plan.reasons[job] for job in plan.reasons})
            if time.monotonic() - beaten >= BEAT:
                beaten = time.monotonic()
                self._guarded(self._beat)
            time.sleep(POLL)

    def _ending(self, open_runs: Sequence[Run]) -> bool:
        """Whether a run that was started here has lost its last job and is about to end: its slots are still held."""
        mine = [run.id for run in open_runs if run.id in self.runs.started_here]
        if not mine or self.how.keep_warm > 0:
            return False
        with self.registry.read() as conn:
            return any(not jobs.live_jobs_of(conn, run_id) for run_id in mine)

    def _guarded(self, action: Callable[[], Result]) -> Result | None:
        """A fault of the registry or of this code is no reason to leave: the runs need somebody."""
        try:
            return action()
        except PtqError as error:
            self.log(f"worker: {error}")
        except Exception:
            self.log(f"worker: {traceback.format_exc()}")
        time.sleep(FAULT_PAUSE)
        return None

    def look(self) -> tuple[Plan, list[Run]]:
        """One round: look after the runs, then place what can start. The plan, and the runs that are open after it."""
        self.runs.reap()
        for run in self.runs.open():
            self._look_after(run)
        plan = self._place()
        return plan, self.runs.open()

    def _look_after(self, run: Run) -> None:
        try:
            self.runs.look_after(run, at=self.clock())
            self._strikes.forgive(run.id)
        except Exception as error:
            if isinstance(error, RegistryUnusable):
                raise  # nothing can be written for any run now; they go on by themselves
            if is_the_machines(error):
                self.runs.say(f"run {run.id} waits for the machine: {error}")
                return
            self.log(f"worker: run {run.id}: {traceback.format_exc()}")
            if self._strikes.out(run.id):
                self.runs.give_up(run, error, at=self.clock())

    def _place(self) -> Plan:
        with self.registry.read() as conn:
            waiting = jobs.waiting_jobs(conn)
            leases = runs.live_leases(conn, self.me.host)
            endings = jobs.endings(conn, {other for job in waiting for other in job.after})
            if self.only is not None:
                waiting = [job for job in waiting if job.id in self.only]
            resting = {job.id: seconds_to_wait(job.not_before, self.clock()) for job in waiting}
            waiting = [job for job in waiting if not resting[job.id]]
            waiting = self._facts.complete(conn, waiting, device=self.how.device)
            hosts = find_hosts(conn, self.registry.paths, leases) if waiting else []
        held = {lease.slot: lease.job_id for lease in leases}
        slots = self.slots.look(held) if waiting else [Slot(name) for name in self.slots.names]
        plan = schedule(waiting, slots, held, endings, hosts, self.how.limits)
        self._resting = any(resting.values())
        plan.reasons |= {job: f"is tried again in {left:.0f} s" for job, left in resting.items() if left}
        seen = {job.id: job for job in waiting}
        for job_id, broken in plan.broken.items():
            self._finish_dependent(seen[job_id], broken)
        for run_id in plan.leave:
            self.log(f"run {run_id}: its base is no longer kept warm, somebody needs the slots")
            request_stop(self.registry.paths.run(run_id), "idle")
        for job_id, names in plan.placements.items():
            companions = [seen[other] for other, leader in plan.companions.items() if leader == job_id]
            self._claim_and_start(seen[job_id], companions, names)
        for job_id, run_id in plan.joins.items():
            self._claim_and_join(seen[job_id], run_id)
        return plan

    def _claim_and_start(self, job: Waiting, companions: Sequence[Waiting], names: tuple[str, ...]) -> None:
        with self.registry.write() as conn:
            claim = runs.claim(conn, job.id, job.attempt, names, self.me, token=uuid.uuid4().hex, at=self.clock())
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
        ready = [one for one in found if self._folder_is_written(one)]
        try:
            pid = start_run(self.registry.paths, ready, claim, names, self.how, key=job.key) if ready else None
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

    def _claim_and_join(self, job: Waiting, run_id: int) -> None:
        """What goes wrong after the claim, `Runs.look_after` puts right: it delivers the ticket or requeues the job."""
        with self.registry.write() as conn:
            if runs.join(conn, job.id, job.attempt, run_id, self.me, at=self.clock()) is None:
                return
            found = jobs.get_job(conn, job.id)
        failpoints.reach("worker.joined")
        self.log(f"job {job.id} ({found.name}): joins run {run_id}")
        if self._folder_is_written(found):
            ticket(self.registry.paths, found).deliver(self.registry.paths.run(run_id))

    def _folder_is_written(self, job: Job) -> bool:
        try:
            write_job(self.registry.paths, job)
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
            jobs.move(
                conn, job.id, job.attempt, ending.state, actor=self.actor, at=self.clock(),
                result=ending.result, reason=ending.reason, message=ending.message,
                not_before=self.clock() + ending.delay if ending.delay else None,
            )  # fmt: skip

    def _finish_dependent(self, job: Waiting, broken: int) -> None:
        with self.registry.write() as conn:
            if jobs.get_job(conn, job.id).state is not JobState.QUEUED:
                return
            jobs.move(
                conn, job.id, job.attempt, JobState.FINISHED, actor=self.actor, at=self.clock(),
                result=JobResult.CANCELLED, reason=Reason.DEPENDENCY_FAILED, message=f"job {broken} did not succeed",
            )  # fmt: skip

    def _idle(self, plan: Plan) -> bool:
        """Nothing runs here and nothing could start: what waits needs something that this worker cannot give."""
        if plan.placements or plan.joins or plan.broken or self._resting:
            return False
        return not plan.reasons or not any(slot.taken_by for slot in self.slots.look(()))

    def _register(self) -> None:
        host, boot, pid = socket.gethostname(), processes.boot_id(), os.getpid()
        with self.registry.write() as conn:
            number = workers.register(
                conn, host=host, pid=pid, pid_started=processes.start_time(pid), boot_id=boot,
                slots=self.slots.names, at=self.clock(),
            )  # fmt: skip
            runs.renew(conn, host, at=self.clock())
        self.me = Claimant(number, host, boot)
        self.actor = f"worker:{number}"
        self.runs = Runs(self.registry, host, self.actor, users_of=self._users_of, log=self.log)

    def _users_of(self, names: Sequence[str]) -> str:
        """Who is on these slots, seen from outside the queue."""
        return "; ".join(slot.taken_by for slot in self.slots.look(()) if slot.name in names and slot.taken_by)

    def _beat(self) -> None:
        with self.registry.write() as conn:
            workers.beat(conn, self.me.worker_id, at=self.clock())
            runs.renew(conn, self.me.host, at=self.clock())

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def leave(number: int, _frame: object) -> None:
            self._signal = number

        before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
