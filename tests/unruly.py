"""Programs that will not go, and an eye for them that does not rely on ptq's: who works in a folder.

`python unruly.py KIND` lives until it is killed, with everything that it has started. KIND: deaf (ignores TERM), forks
(a tree of children, all deaf), daemon (leaves its session by a double fork, with an empty environment), hung (waits for
a child that is stopped), respawner (starts a new child for each one that is killed).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

KINDS = ("deaf", "forks", "daemon", "hung", "respawner")


def be(kind: str) -> None:
    """Never returns."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if kind == "forks":
        for _ in range(3):
            if os.fork() == 0:
                os.fork()
                break
    elif kind == "daemon":
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execve("/bin/sleep", ["sleep", "1000"], {})
            os._exit(0)
    elif kind == "hung":
        child = subprocess.Popen(["sleep", "1000"])
        child.send_signal(signal.SIGSTOP)
        child.wait()
    elif kind == "respawner":
        while True:
            subprocess.Popen(["sleep", "1000"]).wait()
    while True:
        time.sleep(1000)


def members_expected(kind: str) -> int:
    """How many processes live when all is up, without the supervisor."""
    return {"deaf": 1, "forks": 7, "daemon": 2, "hung": 2, "respawner": 2}[kind]


def until_all_is_up(folder: Path, kind: str, seconds: float = 60.0) -> set[int]:
    """Everybody of the run, its supervisor too."""
    deadline = time.monotonic() + seconds
    while len(found := who_works_in(folder)) != 1 + members_expected(kind):
        assert time.monotonic() < deadline, f"{kind}: {found}"
        time.sleep(0.02)
    return found


def who_works_in(folder: Path) -> set[int]:
    """Living processes whose current folder it is, or lies in it: it is not lost with an environment."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cwd").readlink().is_relative_to(folder) and not _is_zombie(entry):
                    found.add(int(entry.name))
    return found


def _is_zombie(entry: Path) -> bool:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"


if __name__ == "__main__":
    be(sys.argv[1])
