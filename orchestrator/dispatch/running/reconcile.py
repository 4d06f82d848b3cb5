"""What has become of the runs: take in their events, and finish or requeue the jobs of those that have ended.

All that is known about a run lies in its folder, so it does not matter which worker started it.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator import failpoints
from orchestrator.dispatch.running import processes, runlog, signs
from orchestrator.dispatch.running.ingest import News, take_in
from orchestrator.dispatch.running.outcome import (
    Ending,
    Report,
    Tries,
    in_company,
    judge,
    lost,
    not_joined,
    verdict,
)
from orchestrator.dispatch.running.places import clear_job_folder, clear_run_folder
from orchestrator.dispatch.running.requests import request_leave, request_stop
from orchestrator.dispatch.running.settle import settle_attempt, told_by
from orchestrator.dispatch.running.start import ticket, time_limit, write_job
from orchestrator.dispatch.running.strikes import Strikes, is_the_machines
from orchestrator.dispatch.running.supervisor import give_up
from orchestrator.paths import RunPaths, read_json
from orchestrator.registry import history, jobs, runs
from orchestrator.registry.jobs import Job
from orchestrator.registry.runs import Run
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import Policy
from orchestrator.states import JobResult, JobState, Reason

if TYPE_CHECKING:
    pass

KILL_SECONDS = 2.0  #: for the leftovers of a dead supervisor, in one look; the next look goes on
GPU_SECONDS = 10.0  #: for the driver to give back what a dead process had on a card

Log = Callable[[str], None]


@dataclass
class Runs:
    """The runs of this box, as one worker looks after them."""

    registry: Registry
    host: str
    actor: str
    children: set[int] = field(default_factory=set)  #: pids of supervisors that this process has started
    started_here: dict[int, int] = field(default_factory=dict)  #: run -> that pid
    users_of: Callable[[Sequence[str]], str] = lambda _slots: ""  #: who is on these slots; empty: nobody
    log: Log = lambda _text: None
    half_life: float = Policy.half_life  #: in seconds, of what users are charged
    _followed: set[tuple[int, int]] = field(default_factory=set)  #: (job, attempt) whose earlier events have been seen
    _strikes: Strikes = field(default_factory=Strikes)  #: of (job, attempt)
    _over_since: dict[int, float] = field(default_factory=dict)  #: run -> when its last process was seen to be gone
    _killed: set[int] = field(default_factory=set)  #: runs of which somebody lived when they were over
    _said: set[str] = field(default_factory=set)
    _signs: signs.Signs = field(default_factory=signs.Signs)
    _cleared: set[object] = field(default_factory=set)  #: runs, and (job, attempt), whose folders are theirs

    def open(self) -> list[Run]:
        with self.registry.read() as conn:
            return runs.open_runs(conn, self.host)

    @property
    def over(self) -> list[int]:
        """Runs of which nobody lives any more, and which are not closed: somebody is on the card, the disk is full."""
        return list(self._over_since)

    def started(self, run_id: int, pid: int) -> None:
        self.children.add(pid)
        self.started_here[run_id] = pid

    def reap(self) -> None:
        """Let go of supervisors that have ended."""
        for pid in list(self.children):
            try:
                gone = os.waitpid(pid, os.WNOHANG)[0] == pid
            except ChildProcessError:
                gone = True
            if gone:
                self.children.discard(pid)

    def look_after(self, run: Run, *, at: float) -> None:
        """One look at one run; it never waits long."""
        paths = self.registry.paths.run(run.id)
        if run.id not in self._cleared:
            clear_run_folder(paths, run.id, run.token, say=self.log)
            self._cleared.add(run.id)
        if paths.exit_record.exists():
            self._end(run, paths, at=at)
        elif run.boot_id != processes.boot_id():
            self._lose(run, paths, Reason.NODE_REBOOTED, "the machine was restarted", at=at)
        elif (other := self._signs.others(paths)) is not None:
            self.say(f"run {run.id} was started by the account with number {other}, and only that or root can end it")
        elif self._signs.supervised(paths):
            self._follow(run, paths, at=at)
        elif paths.supervisor.exists():
            self._lose(run, paths, Reason.WORKER_LOST, "the run's supervisor died", at=at)
        elif self.started_here.get(run.id) in self.children:  # it is on its way
            if not paths.spec.exists():
                self._lose(run, paths, Reason.WORKER_LOST, "somebody has removed the run's folder", at=at)
        elif give_up(paths) or not self._signs.supervised(paths):
            # Its supervisor never introduced itself, and now it never can.
            reason = Reason.LAUNCH_FAILED if run.id in self.started_here else Reason.WORKER_LOST
            self._lose(run, paths, reason, "the run's supervisor did not start", at=at)

    def _follow(self, run: Run, paths: RunPaths, *, at: float) -> None:
        live = self._live_jobs(run)
        ending = all(job.state is JobState.STOPPING for job in live)
        for job in live:
            self._alone(run, job, lambda job=job: self._follow_one(run, paths, job, ending, at=at), at=at)  # type: ignore[misc]
        if any(self._folder_is_lost(paths, job) for job in live) and not paths.stop_request.exists():
            request_stop(paths, "folder")  # its program writes to files that have no name any more
        if live and ending and not paths.stop_request.exists():
            request_stop(paths)

    def _clear(self, run: Run, job: Job, *, at: float) -> None:
        if (job.id, job.attempt) not in self._cleared:
            clear_job_folder(self.registry, job, run.token, actor=self.actor, at=at, say=self.log)
            self._cleared.add((job.id, job.attempt))

    def _follow_one(self, run: Run, paths: RunPaths, job: Job, ending: bool, *, at: float) -> None:
        """`ending`: every job of the run was cancelled. Then none is said to have ended before its processes have."""
        self._clear(run, job, at=at)
        news = take_in(self.registry, job, actor=f"run:{run.id}", at=at)
        if ending:
            request_leave(self.registry.paths, job)
            return
        if self._has_left(run, job, news, at=at):
            return
        if job.state is JobState.STOPPING:
            request_leave(self.registry.paths, job)  # whoever cancelled it may have been killed before saying so
        if not self._arrived(run, paths, job):
            self._settle(run, job, not_joined(cancelled=_cancelled(job)), Report(), at=at)

    def _alone(self, run: Run, job: Job, action: Callable[[], None], *, at: float) -> bool:
        """Do something about one of a run's jobs; what goes wrong concerns that job alone. Whether it is done."""
        what = (job.id, job.attempt)
        try:
            action()
        except Exception as error:
            if is_the_machines(error):
                raise
            self.log(f"worker: job {job.id}: {traceback.format_exc()}")
            if not self._strikes.out(what):
                return False
            message = f"ptq failed to look after this job ({type(error).__name__}: {error}); the worker's log says more"
            with suppress(OSError):
                request_leave(self.registry.paths, job)
            self._settle(run, job, Ending(JobResult.FAILED, Reason.CRASHED, message), Report(), at=at)
        self._strikes.forgive(what)
        return True

    def _folder_is_lost(self, paths: RunPaths, job: Job) -> bool:
        """Whether somebody has removed it. The worker has written the specification before the run was told."""
        told = ticket(self.registry.paths, job).was_taken(paths)
        return told and not self.registry.paths.job(job.id).spec.exists()

    def _has_left(self, run: Run, job: Job, news: News | None, *, at: float) -> bool:
        """Finish or requeue a job that says how it ended, while its run goes on."""
        looked_at = (job.id, job.attempt)
        if looked_at in self._followed and (news is None or not news.ended):
            return False
        # Until it is settled, each look is at all its events: its last words may have been taken in by an earlier
        # worker, or before a disk was full, and are no news then.
        self._followed.discard(looked_at)
        told, faults = told_by(self.registry, job)
        ending = verdict(told, faults, cancelled=_cancelled(job), tries=_tries(job))
        if ending is None:
            self._followed.add(looked_at)
            return False
        self._settle(run, job, ending, told, at=at)
        return True

    def _arrived(self, run: Run, paths: RunPaths, job: Job) -> bool:
        """Whether the run has the job or can still be given it: a worker may die between a claim and its ticket."""
        if not paths.joined.exists():  # a run of an earlier version of ptq, which has one job
            return True
        mine = ticket(self.registry.paths, job)
        try:
            if not mine.arrived(paths):
                write_job(self.registry.paths, job, run.token)
            return mine.deliver(paths)
        except OSError:
            return False

    def _reached(self, paths: RunPaths, job: Job) -> bool:
        """Whether the program has been told of the job."""
        return not paths.joined.exists() or ticket(self.registry.paths, job).was_taken(paths)

    def _end(self, run: Run, paths: RunPaths, *, at: float) -> None:
        """Only when nobody of the run lives: first the proof, then the jobs' states, then the slots."""
        if not self._nobody_lives(run, paths):
            return
        record = read_json(paths.exit_record)
        live = self._live_jobs(run)
        reached = [job.id for job in live if self._reached(paths, job)]
        if any(self._folder_is_lost(paths, job) for job in live):
            record["why"] = "folder"  # also where the program fell over it before it could be asked
        log = runlog.tail(paths)
        done = [
            self._alone(run, job, lambda job=job: self._end_one(run, paths, job, record, reached, log, at=at), at=at)  # type: ignore[misc]
            for job in live
        ]
        failpoints.reach("worker.ending")
        if all(done):
            self._close(run, record, used_until=signs.ended_at(record), at=at)

    def _end_one(
        self, run: Run, paths: RunPaths, job: Job, record: Mapping[str, Any], reached: Sequence[int], log: str, *,
        at: float,
    ) -> None:  # fmt: skip
        lost_folder = self._folder_is_lost(paths, job)
        if not lost_folder:
            self._clear(run, job, at=at)
        news = take_in(self.registry, job, actor=f"run:{run.id}", at=at)
        self._followed.discard((job.id, job.attempt))
        if not lost_folder and self._has_left(run, job, news, at=at):
            return
        if job.id not in reached:
            self._settle(run, job, not_joined(cancelled=_cancelled(job)), Report(), at=at)
        elif lost_folder:
            self._start_anew(run, job, at=at)
        else:
            told, faults = told_by(self.registry, job)
            asked = {**record, "why": self._why(record, job)}
            ending = judge(asked, told, faults, log, cancelled=_cancelled(job), tries=_tries(job))
            others = [other for other in reached if other != job.id]
            self._settle(run, job, in_company(ending, others, _tries(job)), told, at=at)

    def _start_anew(self, run: Run, job: Job, *, at: float) -> None:
        """What its program has still written there begins in the middle."""
        shutil.rmtree(self.registry.paths.job(job.id).root, ignore_errors=True)
        with self.registry.write() as conn:
            jobs.set_progress(conn, job.id, job.attempt, step=0, steps=job.steps, events_offset=0)
        message = "somebody has removed the job's folder; it starts anew"
        ending = lost(Reason.FOLDER_LOST, message, cancelled=_cancelled(job), tries=_tries(job))
        self._settle(run, job, ending, Report(), at=at)

    def _nobody_lives(self, run: Run, paths: RunPaths) -> bool:
        """The proof that a run is over: no process of it lives, and none is left on its slots.

        The supervisor itself, which has written its last word, holds nothing. Who survives KILL keeps the slots.
        """
        own = {read_json(paths.supervisor)["pid"]} if self._signs.supervised(paths) else set()
        left = processes.members(run.token) - own
        if left:
            if run.id in self._killed:
                stuck = ", ".join(map(str, sorted(left)))
                self.say(f"run {run.id} is over, but its processes {stuck} survive KILL; its slots are not free")
            processes.send(left, signal.SIGKILL)
            self._killed.add(run.id)
            return False
        with self.registry.read() as conn:
            slots = [lease.slot for lease in runs.live_leases(conn, self.host) if lease.run_id == run.id]
        since = self._over_since.setdefault(run.id, time.monotonic())
        users = self.users_of(slots)
        if users and time.monotonic() - since < GPU_SECONDS:
            return False
        if users:  # not one of the run's processes; the slot is given to nobody while it is used
            self.say(f"run {run.id} is over; its slots are used by {users}")
        return True

    def say(self, text: str) -> None:
        """Once."""
        if text not in self._said:
            self._said.add(text)
            self.log(f"worker: {text}")

    def _why(self, record: Mapping[str, Any], job: Job) -> str:
        """What the run was asked, as it concerns this job: another's cancel or time limit only makes room."""
        why = str(record.get("why"))
        if why == "folder":
            return "preempt"
        if why == "cancel" and not _cancelled(job):
            return "preempt"
        if why == "timeout" and not self._out_of_time(record, job):
            return "preempt"
        return why

    def _out_of_time(self, record: Mapping[str, Any], job: Job) -> bool:
        if "expired" in record:
            return job.id in record["expired"]
        limit = time_limit(job)
        with self.registry.read() as conn:
            began = history.claimed_at(conn, job.id, job.attempt)
        return limit is not None and (began is None or float(record["ended_at"]) - began >= limit)

    def _lose(self, run: Run, paths: RunPaths, reason: Reason, message: str, *, at: float) -> None:
        """A run without a supervisor: end what it left, then let its jobs be tried again."""
        if self._signs.is_out_of_sight(paths) and not paths.stop_request.exists():
            request_stop(paths, "preempt")  # whoever cannot be reached ends by himself, should he live after all
        left = processes.kill_until_gone(lambda: processes.members(run.token), timeout=KILL_SECONDS)
        if left or not self._nobody_lives(run, paths):
            return
        if paths.exit_record.exists():  # its last act, while we looked
            self._end(run, paths, at=at)
            return
        done = [
            self._alone(run, job, lambda job=job: self._lose_one(run, job, reason, message, at=at), at=at)  # type: ignore[misc]
            for job in self._live_jobs(run)
        ]
        if all(done):
            self._close(run, None, used_until=signs.last_sign(run, paths), at=at)

    def _close(self, run: Run, record: Mapping[str, Any] | None, *, used_until: float | None, at: float) -> None:
        with self.registry.write() as conn:
            runs.end_run(
                conn, run.id, exit_record=record, at=at, used_until=used_until, half_life=self.half_life
            )  # fmt: skip
        self._over_since.pop(run.id, None)
        self._cleared.discard(run.id)

    def _lose_one(self, run: Run, job: Job, reason: Reason, message: str, *, at: float) -> None:
        if self._folder_is_lost(self.registry.paths.run(run.id), job):
            self._start_anew(run, job, at=at)
            return
        self._clear(run, job, at=at)
        news = take_in(self.registry, job, actor=f"run:{run.id}", at=at)
        self._followed.discard((job.id, job.attempt))
        if self._has_left(run, job, news, at=at):  # it had ended before its run was lost
            return
        ending = lost(reason, message, cancelled=_cancelled(job), tries=_tries(job))
        self._settle(run, job, ending, Report(), at=at)

    def give_up(self, run: Run, error: Exception, *, at: float) -> None:
        """This code fails on a run again and again: it ends, and its jobs are tried again as often as they may be."""
        self.log(f"worker: run {run.id} is given up: {error}")
        self._lose(run, self.registry.paths.run(run.id), Reason.WORKER_LOST, f"ptq failed on its run: {error}", at=at)

    def _settle(self, run: Run, job: Job, ending: Ending, told: Report, *, at: float) -> None:
        settle_attempt(self.registry, run.id, job, ending, told, actor=self.actor, at=at)
        self._cleared.discard((job.id, job.attempt))

    def _live_jobs(self, run: Run) -> list[Job]:
        with self.registry.read() as conn:
            return jobs.live_jobs_of(conn, run.id)


def _cancelled(job: Job) -> bool:
    return job.state is JobState.STOPPING


def _tries(job: Job) -> Tries:
    return Tries(job.counted_attempts, job.max_attempts)
