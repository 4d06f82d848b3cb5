"""The small process that owns one run: `python -m orchestrator.dispatch.running.supervisor RUN_FOLDER COMMAND…`.

It outlives the worker, never opens the database, and tells the ledger everything through the run's folder:
supervisor.json (who it is, before anything starts), heartbeat (each second), run.log, and exit.json, written
last. It leaves no process behind: not one that ignores TERM, nor one that moved to a session of its own. Where an
older registry was put back and another run has the folder's name now, it ends its own and writes nothing there.
Standard library only, so that nothing can go wrong in an import.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator import failpoints
from orchestrator.dispatch.running import processes, runlog
from orchestrator.dispatch.running.launcher import TRAINING
from orchestrator.dispatch.running.limits import Memory, TimeLimit
from orchestrator.jobspec import RunSpec
from orchestrator.paths import RunPaths, fsync_folder, read_json, write_json
from orchestrator.settings import child_environment

POLL = 0.2  #: seconds between looks at the stop request
HEARTBEAT = 1.0
LEFTOVER_GRACE = 5.0  #: for what still lives after a command that ended well
KILL_WAIT = 60.0  #: for KILLed processes to be gone; who outlives that is stuck in the kernel


@dataclass
class Exit:
    """The exit record. `why` is what we were asked: none | cancel | timeout | preempt | idle (an empty run makes room)
    | folder (a job's was removed); or `memory`: it held more than it may; `launch`: it never started."""

    exit_code: int | None = None
    signal: int | None = None
    why: str = "none"
    message: str = ""
    started_at: float = 0.0
    ended_at: float = 0.0
    oom_kill: bool | None = None
    survivors: list[int] = field(default_factory=list)
    expired: list[int] = field(default_factory=list)  #: the jobs whose time limit was over, by a clock that nobody sets
    peak_memory: int = 0  #: bytes that its processes held for themselves, as seen every few seconds


def main(arguments: list[str]) -> int:
    paths = RunPaths(Path(arguments[0]).absolute())
    os.chdir(paths.root)  # ours alone: no file of a user's folder is taken for a module
    supervisor = Supervisor(paths, RunSpec.read(paths.spec))
    failpoints.reach("supervisor.born")
    if not introduce(paths):
        sys.stderr.write("supervisor: this run has been given up; nothing was started\n")
        return 1
    failpoints.reach("supervisor.introduced")
    record = supervisor.record
    try:
        supervisor.run(arguments[1:])
    except BaseException as error:  # whatever it was: the record below must still be written
        record.message = f"{type(error).__name__}: {error}"
        record.why = record.why if supervisor.launched else "launch"
    supervisor.kill()
    supervisor.close()
    failpoints.reach("supervisor.over")
    record.ended_at = time.time()
    _write_record(paths, record, supervisor.spec.token)
    failpoints.reach("supervisor.recorded")
    return 0


def introduce(paths: RunPaths) -> bool:
    """Publish supervisor.json, exclusively: False when somebody has already taken that name (see `give_up`)."""
    return _create(paths, {
        "pid": os.getpid(), "started": processes.start_time(os.getpid()), "pids": processes.pid_namespace(),
        "boot_id": processes.boot_id(), "session": os.getsid(0), "uid": os.getuid(),
    })  # fmt: skip


def give_up(paths: RunPaths) -> bool:
    """Take supervisor.json's place, so that a supervisor that has yet to introduce itself starts nothing."""
    return _create(paths, {"pid": 0, "started": 0, "boot_id": processes.boot_id(), "session": 0, "uid": os.getuid()})


def _create(paths: RunPaths, content: dict[str, object]) -> bool:
    temporary = paths.supervisor.with_name(f".supervisor.{os.getpid()}.partial")
    write_json(temporary, content)
    try:
        os.link(temporary, paths.supervisor)  # unlike a rename, a link refuses to replace
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    fsync_folder(paths.root)
    return True


class Supervisor:
    """One run, from its start to the death of its last process."""

    def __init__(self, paths: RunPaths, spec: RunSpec) -> None:
        self.paths, self.spec, self.record = paths, spec, Exit(started_at=time.time())
        self.launched = False
        self.child = 0  #: the command's pid while it lives
        self.asked: dict[int, int] = {}  #: pid -> start time of the processes that we have sent TERM
        self.kill_at: float | None = None
        self.told_to_stop = False
        self.heartbeat_at = 0.0
        self.limit = TimeLimit(paths, spec)
        self.memory = Memory(spec)
        self.wake = self._listen()

    def run(self, command: list[str]) -> None:
        processes.become_subreaper()
        before = processes.oom_kills()
        self.child = self._start(command)
        processes.offer_to_the_kernel(self.child)
        self.launched = True
        failpoints.reach("supervisor.launched")
        while not self._over():
            if _is_anothers(self.paths, self.spec.token):
                self.kill()  # at once: a checkpoint would lie in another job's folder
                break
            self._beat()
            if (held := self.memory.over()) and self.record.why != "memory":
                self._end_for_memory(held)
            if self.kill_at is None:
                self._look_for_a_request(self.limit.over())
            else:
                self._ask()
                failpoints.reach("supervisor.asked")
                if time.monotonic() > self.kill_at and self.kill():
                    break
            if select.select([self.wake], [], [], POLL)[0]:
                os.read(self.wake, 4096)
        after = processes.oom_kills()
        self.record.oom_kill = None if before is None or after is None else after > before
        if self.memory.killed():
            self.record.why, self.record.message = "memory", self.memory.words()

    def close(self) -> None:
        """The last facts for the record, when nobody lives any more."""
        self.record.expired = self.limit.expired()
        self.record.peak_memory = self.memory.peak
        self.memory.close()

    def _end_for_memory(self, held: int) -> None:
        """At once: there is no time for a checkpoint when the machine's memory runs out."""
        self.record.why, self.record.message = "memory", self.memory.words(held)
        self.kill_at = time.monotonic()

    def kill(self) -> list[int]:
        """KILL everything of the run until nothing lives; who survived KILL_WAIT seconds of that."""
        left = processes.kill_until_gone(
            lambda: processes.members(self.spec.token, below=os.getpid()), timeout=KILL_WAIT, tick=self._reap
        )
        self.record.survivors = sorted(left)
        return self.record.survivors

    def _listen(self) -> int:
        """Signals end the wait at once. Handlers, not SIG_IGN: a program that we start must not inherit them."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_term)
        return reader

    def _on_term(self, *_: object) -> None:
        self.told_to_stop = True

    def _start(self, command: list[str]) -> int:
        log = os.open(self.paths.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        quiet = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        environment = child_environment(**{processes.TOKEN: self.spec.token})
        actions: list[Any] = [
            (os.POSIX_SPAWN_DUP2, quiet, 0),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
        ]
        try:
            with self.memory.inside():
                return os.posix_spawnp(command[0], command, environment, file_actions=actions, setpgroup=0)
        finally:
            os.close(log)
            os.close(quiet)

    def _over(self) -> bool:
        """Whether the command has ended and nobody of the run lives."""
        self._reap()
        if self.child:
            return False
        left = processes.members(self.spec.token, below=os.getpid())
        if left and self.kill_at is None:
            # The launcher has gone and left somebody behind: a rank whose launcher was killed may still checkpoint.
            grace = self.spec.grace_seconds
            self.kill_at = time.monotonic() + (min(grace, LEFTOVER_GRACE) if self.record.exit_code == 0 else grace)
        return not left

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pid, status = 0, 0
            if pid == 0:
                return
            if pid == self.child:
                self.child = 0
                self.record.signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
                self.record.exit_code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None

    def _look_for_a_request(self, out_of_time: bool) -> None:
        why = _requested(self.paths)
        if why is None and self.told_to_stop:
            why = "preempt"
        if why is None and out_of_time:
            why = "timeout"
        if why is not None:
            self.record.why = why
            self.kill_at = time.monotonic() + self.spec.grace_seconds
            self._ask()

    def _ask(self) -> None:
        """TERM, once each, to those who can checkpoint; looks again each time, for a rank may just have been born."""
        table = processes.everyone()
        for pid in self._addressees(table):
            if self.asked.get(pid) != table[pid].started:
                self.asked[pid] = table[pid].started
                processes.send([pid], signal.SIGTERM)

    def _addressees(self, table: dict[int, processes.Process]) -> set[int]:
        """The ranks: the uppermost processes that run the training module. Without any: the command itself.

        Not the launcher (torchrun's agent would kill its ranks before they can checkpoint) and not what a rank
        has started (a data loader's process that dies would fail the rank).
        """
        below = processes.descendants(os.getpid(), table)
        ranks = {pid for pid in below if processes.python_module(processes.command_line(pid)) == TRAINING}
        ranks = {pid for pid in ranks if table[pid].parent not in ranks}
        if ranks:
            return ranks
        return {self.child} & below if self.child else below

    def _beat(self) -> None:
        if time.monotonic() - self.heartbeat_at >= HEARTBEAT:
            self.heartbeat_at = time.monotonic()
            with contextlib.suppress(OSError):  # a full disk must not end a run
                self.paths.heartbeat.touch()
        runlog.bound(self.paths)


def _requested(paths: RunPaths) -> str | None:
    try:
        why = json.loads(paths.stop_request.read_bytes())["why"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return "cancel"  # the file is there; what else could it want?
    return why if why in {"cancel", "timeout", "preempt", "idle", "folder"} else "cancel"


def _is_anothers(paths: RunPaths, token: str) -> bool:
    """Whether another run has the folder's name now, and this run's was set aside (see `places`)."""
    try:
        return bool(read_json(paths.spec)["token"] != token)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_record(paths: RunPaths, record: Exit, token: str) -> None:
    """Until it is on the disk: a full disk is waited out. A folder that was deleted has no reader any more."""
    while paths.root.is_dir() and not _is_anothers(paths, token):
        try:
            write_json(paths.exit_record, asdict(record))
            return
        except OSError:
            time.sleep(1.0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
