"""What has become of the runs: take in their events, and finish or requeue the jobs of those that have ended.

All that is known about a run lies in its folder, so it does not matter which worker started it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.dispatch import processes
from orchestrator.dispatch.ingest import News, take_in
from orchestrator.dispatch.outcome import Ending, Report, Tries, in_company, judge, lost, not_joined, report, verdict
from orchestrator.dispatch.start import ticket, time_limit, write_job
from orchestrator.dispatch.supervisor import give_up
from orchestrator.errors import PtqError, StaleAttempt
from orchestrator.events import read_events
from orchestrator.manifest import manifest_faults
from orchestrator.paths import HomePaths, RunPaths, read_json, write_json
from orchestrator.registry import artifacts, jobs, runs
from orchestrator.registry.engine import Registry
from orchestrator.registry.jobs import Job
from orchestrator.registry.runs import Run
from orchestrator.states import JobResult, JobState, Reason

if TYPE_CHECKING:
    from sqlalchemy import Connection

LOG_BYTES = 65536  #: of the end of run.log that a verdict may rest on
KILL_SECONDS = 2.0  #: for the leftovers of a dead supervisor, in one look; the next look goes on


@dataclass
class Runs:
    """The runs of this box, as one worker looks after them."""

    registry: Registry
    host: str
    actor: str
    children: set[int] = field(default_factory=set)  #: pids of supervisors that this process has started
    started_here: dict[int, int] = field(default_factory=dict)  #: run -> that pid
    _followed: set[tuple[int, int]] = field(default_factory=set)  #: (job, attempt) whose earlier events have been seen

    def open(self) -> list[Run]:
        with self.registry.read() as conn:
            return runs.open_runs(conn, self.host)

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
        if paths.exit_record.exists():
            self._end(run, paths, at=at)
        elif run.boot_id != processes.boot_id():
            self._lose(run, paths, Reason.NODE_REBOOTED, "the machine was restarted", at=at)
        elif _supervised(paths):
            self._follow(run, paths, at=at)
        elif paths.supervisor.exists():
            self._lose(run, paths, Reason.WORKER_LOST, "the run's supervisor died", at=at)
        elif self.started_here.get(run.id) not in self.children and (give_up(paths) or not _supervised(paths)):
            # Its supervisor never introduced itself, and now it never can.
            reason = Reason.LAUNCH_FAILED if run.id in self.started_here else Reason.WORKER_LOST
            self._lose(run, paths, reason, "the run's supervisor did not start", at=at)

    def _follow(self, run: Run, paths: RunPaths, *, at: float) -> None:
        live = self._live_jobs(run)
        for job in live:
            news = take_in(self.registry, job, actor=f"run:{run.id}", at=at)
            if self._has_left(run, job, news, at=at):
                continue
            if job.state is JobState.STOPPING:
                request_leave(self.registry.paths, job)  # whoever cancelled it may have been killed before saying so
            if not self._arrived(paths, job):
                self._settle(run, job, not_joined(cancelled=_cancelled(job)), Report(), at=at)
        if live and all(job.state is JobState.STOPPING for job in live) and not paths.stop_request.exists():
            request_stop(paths)

    def _has_left(self, run: Run, job: Job, news: News | None, *, at: float) -> bool:
        """Finish or requeue a job that says how it ended, while its run goes on."""
        looked_at = (job.id, job.attempt)
        if looked_at in self._followed and (news is None or not news.ended):
            return False
        self._followed.add(looked_at)  # the first look is at all its events: an earlier worker may have taken them in
        told, faults = self._told(job)
        ending = verdict(told, faults, cancelled=_cancelled(job), tries=_tries(job))
        if ending is None:
            return False
        self._settle(run, job, ending, told, at=at)
        self._followed.discard(looked_at)
        return True

    def _arrived(self, paths: RunPaths, job: Job) -> bool:
        """Whether the run has the job or can still be given it: a worker may die between a claim and its ticket."""
        if not paths.joined.exists():  # a run of an earlier version of ptq, which has one job
            return True
        mine = ticket(self.registry.paths, job)
        try:
            if not mine.arrived(paths):
                write_job(self.registry.paths, job)
            return mine.deliver(paths)
        except OSError:
            return False

    def _reached(self, paths: RunPaths, job: Job) -> bool:
        """Whether the program has been told of the job."""
        return not paths.joined.exists() or ticket(self.registry.paths, job).was_taken(paths)

    def _end(self, run: Run, paths: RunPaths, *, at: float) -> None:
        record = read_json(paths.exit_record)
        log = read_tail(paths.log)
        left = []
        for job in self._live_jobs(run):
            news = take_in(self.registry, job, actor=f"run:{run.id}", at=at)
            self._followed.discard((job.id, job.attempt))
            if not self._has_left(run, job, news, at=at):
                left.append(job)
        reached = [job for job in left if self._reached(paths, job)]
        for job in left:
            if job not in reached:
                self._settle(run, job, not_joined(cancelled=_cancelled(job)), Report(), at=at)
                continue
            told, faults = self._told(job)
            why = self._why(record, job)
            ending = judge({**record, "why": why}, told, faults, log, cancelled=_cancelled(job), tries=_tries(job))
            others = [other.id for other in reached if other is not job]
            self._settle(run, job, in_company(ending, others, _tries(job)), told, at=at)
        if not processes.members(run.token):  # who survives KILL keeps the slots: they are not free
            with self.registry.write() as conn:
                runs.end_run(conn, run.id, exit_record=record, at=at)

    def _why(self, record: Mapping[str, Any], job: Job) -> str:
        """What the run was asked, as it concerns this job: another's cancel or time limit only makes room."""
        why = str(record.get("why"))
        if why == "cancel" and not _cancelled(job):
            return "preempt"
        if why == "timeout" and not self._out_of_time(record, job):
            return "preempt"
        return why

    def _out_of_time(self, record: Mapping[str, Any], job: Job) -> bool:
        limit = time_limit(job)
        with self.registry.read() as conn:
            began = jobs.claimed_at(conn, job.id, job.attempt)
        return limit is not None and (began is None or float(record["ended_at"]) - began >= limit)

    def _lose(self, run: Run, paths: RunPaths, reason: Reason, message: str, *, at: float) -> None:
        """A run without a supervisor: end what it left, then let its jobs be tried again."""
        if processes.kill_until_gone(lambda: processes.members(run.token), timeout=KILL_SECONDS):
            return
        if paths.exit_record.exists():  # its last act, while we looked
            self._end(run, paths, at=at)
            return
        for job in self._live_jobs(run):
            take_in(self.registry, job, actor=f"run:{run.id}", at=at)
            self._followed.discard((job.id, job.attempt))
            ending = lost(reason, message, cancelled=_cancelled(job), tries=_tries(job))
            self._settle(run, job, ending, Report(), at=at)
        with self.registry.write() as conn:
            runs.end_run(conn, run.id, exit_record=None, at=at)

    def _settle(self, run: Run, job: Job, ending: Ending, told: Report, *, at: float) -> None:
        if ending.result is not JobResult.SUCCEEDED:
            with self.registry.write() as conn:
                _move(conn, job, ending, actor=self.actor, at=at, run=run)
            return
        try:
            self._keep(run, job, Path(str(told.artifact)), ending, at=at)
        except StaleAttempt:
            return
        except (OSError, PtqError) as error:
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            reason = Reason.DISK_FULL if full else Reason.INCOMPLETE_ARTIFACT
            failed = Ending(JobResult.FAILED, reason, f"the artifact could not be kept: {error}")
            with self.registry.write() as conn:
                _move(conn, job, failed, actor=self.actor, at=at, run=run)

    def _keep(self, run: Run, job: Job, folder: Path, ending: Ending, *, at: float) -> None:
        """Artifact and success are one transaction; the files are copied before it."""
        staged = artifacts.stage_artifact(self.registry.paths, folder)
        with self.registry.write() as conn:
            artifacts.keep_artifact(conn, staged, job_id=job.id, attempt=job.attempt, now=at)
            _move(conn, job, ending, actor=self.actor, at=at, run=run)

    def _told(self, job: Job) -> tuple[Report, list[str]]:
        events, _ = read_events(self.registry.paths.job(job.id).events)
        told = report(events, job.attempt)
        return told, [] if told.artifact is None else manifest_faults(Path(told.artifact))

    def _live_jobs(self, run: Run) -> list[Job]:
        with self.registry.read() as conn:
            return jobs.live_jobs_of(conn, run.id)


def request_leave(paths: HomePaths, job: Job, why: str = "cancel") -> None:
    """Ask a job's training program to leave this job alone. Needs no worker."""
    folder, wanted = paths.job(job.id), {"attempt": job.attempt, "why": why}
    try:
        if read_json(folder.stop_request) == wanted:
            return
    except (OSError, ValueError):
        pass
    write_json(folder.stop_request, wanted)


def request_stop(paths: RunPaths, why: str = "cancel") -> None:
    """Ask a run's supervisor to end it. Needs no worker."""
    write_json(paths.stop_request, {"why": why})


def read_tail(path: Path, size: int = LOG_BYTES) -> str:
    """The end of a log, in whole lines."""
    try:
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - size))
            data = file.read()
    except FileNotFoundError:
        return ""
    if length > size:
        data = data.partition(b"\n")[2]
    return data.decode(errors="replace")


def _supervised(paths: RunPaths) -> bool:
    try:
        who: Mapping[str, Any] = read_json(paths.supervisor)
    except FileNotFoundError:
        return False
    return who["boot_id"] == processes.boot_id() and processes.alive(who["pid"], who["started"])


def _cancelled(job: Job) -> bool:
    return job.state is JobState.STOPPING


def _tries(job: Job) -> Tries:
    return Tries(job.counted_attempts, job.max_attempts)


def _move(conn: Connection, job: Job, ending: Ending, *, actor: str, at: float, run: Run) -> None:
    jobs.move(
        conn, job.id, job.attempt, ending.state,
        actor=actor, at=at, result=ending.result, reason=ending.reason, message=ending.message,
        detail={"run": run.id, "crashed_with": list(ending.crashed_with) or None}, counted=ending.counted,
    )  # fmt: skip
