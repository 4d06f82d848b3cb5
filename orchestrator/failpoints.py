"""Named moments at which a test may break this process: `reach("claimed")` does nothing, unless a test has armed it.

PTQ_FAILPOINTS names a folder. A file `<name>` in it arms that moment once, for whoever reaches it first: an empty file
kills the process on the spot, one that holds the name of an error (ENOSPC) raises it, one that holds SIGSTOP halts the
process until somebody sends it SIGCONT. Without the setting, nothing is looked up.
"""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

from orchestrator import settings

#: Where a death must be survived. Those of a run's program are reached by its first process.
NAMES = (
    "worker.claimed", "worker.started", "worker.joined", "worker.settling", "worker.staged", "worker.settled",
    "worker.ending",
    "supervisor.born", "supervisor.introduced", "supervisor.launched", "supervisor.asked", "supervisor.over",
    "supervisor.recorded",
    "training.stepped", "training.checkpointed", "training.left",
    "cancel.written",
)  # fmt: skip


def reach(name: str) -> None:
    folder = settings.failpoints()
    if folder is None:
        return
    armed = Path(folder, name)
    try:
        wanted = armed.read_text().strip()
        armed.unlink()  # one process gets it
    except FileNotFoundError:
        return
    if wanted == "SIGSTOP":
        os.kill(os.getpid(), signal.SIGSTOP)
        return
    if wanted:
        number = getattr(errno, wanted)
        raise OSError(number, os.strerror(number), name)
    os.kill(os.getpid(), signal.SIGKILL)
