"""Processes as Linux shows them in /proc: who lives, who descends from whom, who belongs to a run.

Standard library and our errors only. A pid alone says little, for it is reused: a process is named by its pid and its
start time, within one boot.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import BadInput

TOKEN = "PTQ_RUN"  #: in the environment of every process of a run
_PR_SET_CHILD_SUBREAPER = 36  # <sys/prctl.h>
_DEAD = frozenset("ZXx")


class NoProc(BadInput):
    """Runs are looked after on Linux only: ptq knows their processes by /proc."""


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    started: int  #: clock ticks since boot
    state: str  #: R, S, D, Z, …

    @property
    def dead(self) -> bool:
        """Gone but for its exit status."""
        return self.state in _DEAD


_PROC = Path("/proc")


def boot_id() -> str:
    """Raises NoProc where the system has no /proc as Linux has it."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        raise NoProc(hint="submit and look from here; train on a box with Linux") from None


def pid_namespace() -> str:
    """In which our pids count: a container's are its own; empty where that cannot be seen.

    The same name within one boot is the same (namespaces(7)).
    """
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def booted_at() -> float:
    """When this machine was started, by its clock; 0.0 where that cannot be seen."""
    try:
        lines = (_PROC / "stat").read_text().splitlines()
    except FileNotFoundError:
        return 0.0
    return next((float(line.split()[1]) for line in lines if line.startswith("btime ")), 0.0)


def look(pid: int) -> Process | None:
    """The process with this pid, or None."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in parentheses and may itself hold spaces and parentheses (proc(5)).
    fields = text[text.rindex(b")") + 2 :].split()
    return Process(pid=pid, parent=int(fields[1]), started=int(fields[19]), state=fields[0].decode())


def start_time(pid: int) -> int:
    process = look(pid)
    if process is None:
        raise ProcessLookupError(pid)
    return process.started


def alive(pid: int, started: float) -> bool:
    """Whether the process that had this pid and start time still lives. A recycled pid is another process."""
    process = look(pid)
    return process is not None and process.started == int(started) and not process.dead


def mark(pid: int) -> str:
    """Names a process for as long as this boot lasts, and beyond containers: see `lives`."""
    return f"{boot_id()}/{pid_namespace()}/{pid}/{start_time(pid)}"


def lives(marked: str) -> bool | None:
    """Whether a marked process lives; None where that cannot be seen: it is in another container, or /proc hides it."""
    boot, namespace, pid, started = marked.split("/")
    if boot != boot_id():
        return False
    if not namespace or namespace != pid_namespace() or look(1) is None:
        return None
    return alive(int(pid), int(started))


def everyone() -> dict[int, Process]:
    found = (look(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return {process.pid: process for process in found if process is not None}


def descendants(root: int, table: dict[int, Process]) -> set[int]:
    """All below `root`, without it. Orphans count where `root` is their subreaper: they become its children."""
    children: dict[int, list[int]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: set[int] = set()
    waiting = [root]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def with_token(token: str, table: dict[int, Process]) -> set[int]:
    """Processes whose environment holds PTQ_RUN=<token>: also those that left their session or were adopted by init."""
    wanted = f"{TOKEN}={token}".encode()
    found = set()
    for pid in table:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:  # gone, or another user's
            continue
        if wanted in environment.split(b"\0"):
            found.add(pid)
    return found


def token_of(pid: int) -> str:
    """The run that a process belongs to; empty for a stranger's, or where that cannot be read."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return ""
    prefix = f"{TOKEN}=".encode()
    found = (entry[len(prefix) :] for entry in environment.split(b"\0") if entry.startswith(prefix))
    return next(found, b"").decode(errors="replace")


def members(token: str, *, below: int | None = None) -> set[int]:
    """Living processes of a run, without the caller: those with its token and, with `below`, all under that pid."""
    table = everyone()
    found = with_token(token, table)
    if below is not None:
        found |= descendants(below, table)
    return {pid for pid in found if pid != os.getpid() and not table[pid].dead}


def send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def kill_until_gone(
    find: Callable[[], set[int]], *, timeout: float, tick: Callable[[], None] = lambda: None
) -> set[int]:
    """KILL whatever `find` names until it names nobody, or `timeout` seconds are over; who is left.

    It looks again after each round, because a process may fork between the look and the blow. A process in
    uninterruptible sleep outlives KILL: hence the bound.
    """
    deadline = time.monotonic() + timeout
    while True:
        tick()
        left = find()
        if not left or time.monotonic() > deadline:
            return left
        send(left, signal.SIGKILL)
        time.sleep(0.02)


def become_subreaper() -> None:
    """Orphans below this process become its children, however they daemonise, so that none escapes its sight."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def offer_to_the_kernel(pid: int) -> None:
    """When the machine has no memory left: rather this process and its children than a worker or somebody's shell."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text("500")


def command_line(pid: int) -> list[str]:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [part.decode(errors="replace") for part in raw.split(b"\0")[:-1]]


def python_module(arguments: list[str]) -> str | None:
    """The module that `python [options] -m MODULE …` runs; None for a script or another program.

    A launcher's own command line (`python accelerate launch … -m MODULE`) names a script first, so it is not MODULE.
    """
    if not arguments or "python" not in Path(arguments[0]).name:
        return None
    rest = iter(arguments[1:])
    for argument in rest:
        if argument == "-m":
            return next(rest, None)
        if argument in {"-X", "-W"}:
            next(rest, None)
        elif not argument.startswith("-"):
            return None
    return None


def oom_kills() -> int | None:
    """How often the kernel has killed for want of memory in this process's cgroup; None where that cannot be read."""
    for path in _oom_counters():
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.strip().isdigit():
                return int(value)
    return None


def _oom_counters() -> list[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    paths = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        below = group.lstrip("/")
        if controllers == "":
            paths.append(Path("/sys/fs/cgroup", below, "memory.events"))
        elif "memory" in controllers.split(","):
            paths.append(Path("/sys/fs/cgroup/memory", below, "memory.oom_control"))
    return paths
