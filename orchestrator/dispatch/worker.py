"""`ptq worker`: places jobs on this box's slots and looks after their runs.

It may be killed at any moment: runs go on under their supervisors, and the next worker takes them over.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from orchestrator.dispatch.access import check_may_work
from orchestrator.dispatch.lock import worker_lock
from orchestrator.dispatch.notify import Notifier
from orchestrator.dispatch.people import Reservations
from orchestrator.dispatch.running import processes
from orchestrator.dispatch.running.launcher import LaunchCommand, threads_per_process, training_command
from orchestrator.dispatch.running.outcome import seconds_to_wait
from orchestrator.dispatch.running.reconcile import Runs
from orchestrator.dispatch.running.requests import request_stop
from orchestrator.dispatch.running.start import Manner
from orchestrator.dispatch.running.strikes import Strikes, is_the_machines
from orchestrator.dispatch.scheduling.admission import Limits, default_limits
from orchestrator.dispatch.scheduling.box import Slot
from orchestrator.dispatch.scheduling.fusing import Facts
from orchestrator.dispatch.scheduling.gpus import NoGpu
from orchestrator.dispatch.scheduling.reasons import name
from orchestrator.dispatch.scheduling.scheduler import Plan
from orchestrator.dispatch.scheduling.slots import Slots
from orchestrator.dispatch.scheduling.survey import survey
from orchestrator.dispatch.signals import ended_by
from orchestrator.dispatch.starter import Starter
from orchestrator.errors import BadInput, PtqError, RegistryUnusable
from orchestrator.registry import controls, history, jobs, reservations, runs, workers
from orchestrator.registry.jobs import Move
from orchestrator.registry.queue import Waiting
from orchestrator.registry.runs import Claimant, Run
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import load_policy
from orchestrator.states import JobResult, JobState, Reason

POLL = 0.25  #: seconds between looks
BEAT = 5.0  #: seconds between heartbeats
FAULT_PAUSE = 1.0

#: The queue is looked at anew when something has happened to a job or a slot; else after so many seconds (a person's
#: process may have left a card, a turn may be over), or after `PLACE_SHARE` times what the last look has taken, but
#: `REST` at most: with thousands in line the worker takes a hundredth of a core.
PLACE_EVERY = 2.0
PLACE_SHARE = 100.0
REST = 60.0  #: where nobody waits

Log = Callable[[str], None]


Result = TypeVar("Result")


def _heard_or_not(log: Log) -> Log:
    """A full disk under the log, or a terminal that is gone, is no reason to leave, least of all behind a claim."""

    def say(text: str) -> None:
        with suppress(OSError, ValueError):
            log(text)

    return say


@dataclass
class Ended:
    """Why a worker left."""

    signal: int | None = None
    running: list[int] = field(default_factory=list)  #: runs that go on without it
    never: dict[int, str] = field(default_factory=dict)  #: jobs that can never run here, and why
    drained_by: str | None = None


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
        turns: bool = False,
    ) -> None:
        """`only`: start none but these jobs. `limits`: how full a run gets. `keep_warm`: seconds an empty one stays.

        `turns`: each job of a run has forwards of its own.
        """
        self.registry, self.slots = registry, slots
        self.log, self.clock, self.only = _heard_or_not(log), clock, only
        self.how = Manner(
            slots.device,
            threads_per_process(len(slots.names)),
            command,
            limits or default_limits(slots.device),
            keep_warm,
            registry.settings.grace_seconds,
            registry.settings.run_memory,
            slots.model,
            turns,
        )
        self.policy, self._policy_fault = load_policy(registry.paths.root), ""
        self._notifier = Notifier(registry, self.log)
        self._draining: str | None = None
        self._plan = Plan()
        self._changes: int | None = None  #: of the registry, at the last look, where no run was open then
        self._seen: object = None  #: the state of the queue that `_plan` was made from
        self._place_again_at = 0.0
        self._facts = Facts(registry.paths, model=self.how.model, threads=self.how.threads)
        self._resting: float | None = None  #: seconds until the first of those that wait for their next try may have it
        self._signal: int | None = None
        self._strikes = Strikes()

    def work(self, *, until_idle: bool = False, until: Callable[[], bool] = lambda: False) -> Ended:
        """Work until a signal, until `until` says so, or with `until_idle` until nothing is left to do here.

        Raises WorkerPresent when this home has a worker on this box.
        """
        check_may_work(self.registry)
        with worker_lock(self.registry.paths.worker_lock), ended_by(self._leave):
            self._register()
            try:
                return self._loop(until_idle, until)
            finally:
                self._guarded(self._notifier.settle)
                with self.registry.write() as conn:
                    workers.leave(conn, self.me.worker_id, at=self.clock())

    def _leave(self, number: int) -> None:
        self._signal = number

    def _loop(self, until_idle: bool, until: Callable[[], bool]) -> Ended:
        beaten = time.monotonic()
        while True:
            plan, open_runs = self._guarded(self.look) or (None, [])
            if self._signal is not None or (until() and not self._ending(open_runs)):
                return Ended(signal=self._signal, running=[run.id for run in open_runs])
            if self._draining and not open_runs:
                return Ended(drained_by=self._draining)
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
        changes = self.registry.changes()  # before anything is read: what comes later is seen at the next look
        if changes is not None and changes == self._changes and time.monotonic() < self._place_again_at:
            return self._plan, []
        self.runs.reap()
        for run in self.runs.open():
            self._look_after(run)
        self._place_if_anything_is_new()
        open_runs = self.runs.open()
        self._changes = None if open_runs else changes  # runs tell by their files, not by the registry
        return self._plan, open_runs

    def _place_if_anything_is_new(self) -> None:
        with self.registry.read() as conn:
            self._see_drained(workers.drained_by(conn, self.me.worker_id))
            seen = (
                history.last_event(conn),
                runs.live_slots(conn, self.me.host),
                reservations.newest(conn),
                controls.get(conn, controls.PAUSED),
                self._draining,
            )
        if seen == self._seen and time.monotonic() < self._place_again_at:
            return
        self._guarded(partial(self._notifier.tell, self.policy))  # no fault there keeps a job from starting
        self._people.end_those_that_are_over(half_life=self.policy.half_life)
        began = time.monotonic()
        self._plan = self._place()
        pause = max(self._pause(), min(REST, PLACE_SHARE * (time.monotonic() - began)))
        self._seen, self._place_again_at = seen, time.monotonic() + pause

    def _pause(self) -> float:
        """Seconds until there may be something to do though nothing has happened."""
        if not self._plan.order and not self._notifier.busy and not self._people.hold_slots:
            return REST
        return PLACE_EVERY if self._resting is None else min(PLACE_EVERY, self._resting)

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
                self._guarded(partial(self.runs.give_up, run, error, at=self.clock()))

    def _place(self) -> Plan:
        now = self.clock()
        with self.registry.read() as conn:
            seen = survey(
                conn, self.registry.paths, self._facts,
                device=self.how.device, policy=self.policy, now=now, host=self.me.host,
                hosts_too=self._draining is not None,
            )  # fmt: skip
        slots = self.slots.look(seen.held) if seen.waiting else [Slot(name) for name in self.slots.names]
        drained = f"this box's worker is leaving: drained by {self._draining}" if self._draining else ""
        plan = seen.plan(slots, self.how.limits, only=self.only, paused=drained)
        waiting = {job.id: job for job in seen.waiting}
        resting = [left for job in seen.waiting if (left := seconds_to_wait(job.not_before, now))]
        self._resting = min(resting, default=None)
        for job_id, broken in plan.broken.items():
            self._finish_dependent(waiting[job_id], broken)
        warm = [host.run for host in seen.hosts if host.warm]
        for run_id in warm if self._draining else plan.leave:
            why = "this box's worker is leaving" if self._draining else "somebody needs the slots"
            self.log(f"run {run_id}: its base is no longer kept warm, {why}")
            request_stop(self.registry.paths.run(run_id), "idle")
        for run_id, other in plan.preempt.items():
            self._make_room(run_id, waiting[other])
        for job_id, names in plan.placements.items():
            if job_id < 0:
                self._people.start(-job_id, names)
                continue
            companions = [waiting[other] for other, leader in plan.companions.items() if leader == job_id]
            self._starter.start(waiting[job_id], companions, names, alone=plan.alone.get(job_id, ""))
        for job_id, run_id in plan.joins.items():
            self._starter.join(waiting[job_id], run_id)
        return plan

    def _make_room(self, run_id: int, other: Waiting) -> None:
        """The run has had its turn: it checkpoints, and its jobs stand in line again."""
        what = f"makes room for {name(other.id)} of {other.user}"
        self.log(f"run {run_id}: has had its turn and {what}")
        with self.registry.write() as conn:
            for job in jobs.live_jobs_of(conn, run_id):
                history.note(
                    conn, job.id, job.attempt, actor=self.actor, at=self.clock(), kind="preempting",
                    detail={"run": run_id, "message": what},
                )  # fmt: skip
        request_stop(self.registry.paths.run(run_id), "preempt")

    def _finish_dependent(self, job: Waiting, broken: int) -> None:
        with self.registry.write() as conn:
            if jobs.get_job(conn, job.id).state is not JobState.QUEUED:
                return
            message = f"job {broken} did not succeed"
            to = Move(JobState.FINISHED, JobResult.CANCELLED, Reason.DEPENDENCY_FAILED, message)
            jobs.move(conn, job.id, job.attempt, to, actor=self.actor, at=self.clock())

    def _idle(self, plan: Plan) -> bool:
        """Nothing runs here and nothing could start: what waits needs something that this worker cannot give."""
        if plan.placements or plan.joins or plan.broken or self._resting is not None:
            return False
        if plan.reasons and self._people.hold_slots:  # a reservation ends, and this worker is who ends it
            return False
        return not plan.reasons or not any(slot.taken_by for slot in self.slots.look(()))

    def _register(self) -> None:
        host, boot, pid = self.registry.box, processes.boot_id(), os.getpid()
        with self.registry.write() as conn:
            number = workers.register(
                conn, host=host, pid=pid, pid_started=processes.start_time(pid), boot_id=boot,
                slots=self.slots.names, at=self.clock(),
            )  # fmt: skip
        self.me = Claimant(number, host, boot)
        self.actor = f"worker:{number}"
        self.runs = Runs(
            self.registry, host, self.actor,
            users_of=self._users_of, log=self.log, half_life=self.policy.half_life,
        )  # fmt: skip
        self._starter = Starter(self.registry, self.slots, self.me, self.how, self.runs, self.log, self.clock)
        self._people = Reservations(
            self.registry, self.me, self._starter.check_still_free, log=self.log, clock=self.clock
        )

    def _users_of(self, names: Sequence[str]) -> str:
        """Who is on these slots, seen from outside the queue; a driver that does not answer names nobody."""
        try:
            seen = self.slots.look(())
        except NoGpu:
            return ""
        return "; ".join(slot.taken_by for slot in seen if slot.name in names and slot.taken_by)

    def _beat(self) -> None:
        with self.registry.write() as conn:
            workers.beat(conn, self.me.worker_id, at=self.clock())
            runs.renew(
                conn, self.me.host,
                at=self.clock(), up_since=processes.booted_at(), half_life=self.policy.half_life, over=self.runs.over,
            )  # fmt: skip
        self._read_policy()

    def _see_drained(self, by: str | None) -> None:
        if by and not self._draining:
            self.log(f"worker: drained by {by}; starts nothing more, and leaves when its runs have ended")
        self._draining = by

    def _read_policy(self) -> None:
        """A faulty queue.toml changes nothing: the last good one stays in force."""
        try:
            self.policy = load_policy(self.registry.paths.root)
            self.runs.half_life = self.policy.half_life
        except BadInput as error:
            if str(error) != self._policy_fault:
                self.log(f"worker: {error}\n  the settings that were in force before stay in force")
            self._policy_fault = str(error)
