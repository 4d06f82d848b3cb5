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
from orchestrator.dispatch.ingest import take_in
from orchestrator.dispatch.outcome import Ending, Report, Tries, judge, lost, report
from orchestrator.dispatch.supervisor import give_up
from orchestrator.errors import PtqError, StaleAttempt
from orchestrator.events import read_events
from orchestrator.manifest import manifest_faults
from orchestrator.paths import RunPaths, read_json, write_json
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
        for job in self._live_jobs(run):
            take_in(self.registry, job, actor=f"run:{run.id}", at=at)
            if job.state is JobState.STOPPING and not paths.stop_request.exists():
                request_stop(paths)  # whoever cancelled it was killed before saying so

    def _end(self, run: Run, paths: RunPaths, *, at: float) -> None:
        record = read_json(paths.exit_record)
        log = read_tail(paths.log)
        for job in self._live_jobs(run):
            take_in(self.registry, job, actor=f"run:{run.id}", at=at)
            told, faults = self._told(job)
            ending = judge(record, told, faults, log, cancelled=_cancelled(job), tries=_tries(job))
            self._settle(run, job, ending, told, at=at)
        if not processes.members(run.token):  # who survives KILL keeps the slots: they are not free
            with self.registry.write() as conn:
                runs.end_run(conn, run.id, exit_record=record, at=at)

    def _lose(self, run: Run, paths: RunPaths, reason: Reason, message: str, *, at: float) -> None:
        """A run without a supervisor: end what it left, then let its jobs be tried again."""
        if processes.kill_until_gone(lambda: processes.members(run.token), timeout=KILL_SECONDS):
            return
        if paths.exit_record.exists():  # its last act, while we looked
            self._end(run, paths, at=at)
            return
        for job in self._live_jobs(run):
            take_in(self.registry, job, actor=f"run:{run.id}", at=at)
            self._settle(run, job, lost(reason, message, cancelled=_cancelled(job), tries=_tries(job)), Report(), at=at)
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
        actor=actor, at=at, result=ending.result, reason=ending.reason, message=ending.message, detail={"run": run.id},
    )  # fmt: skip
