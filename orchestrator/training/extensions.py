"""The lock files of torch's compiled extensions (DeepSpeed builds one for its communication on CPU).

torch marks a build or a load by a file named `lock`, and everybody else waits until it is gone. A process that is
killed meanwhile leaves it behind, and every later run with DeepSpeed would wait for ever, silently.
"""

from __future__ import annotations

import fcntl
from pathlib import Path

import psutil
from torch.utils.cpp_extension import _get_build_directory


def extensions_folder() -> Path:
    """Where this torch keeps the extensions that it compiles, one folder each."""
    return Path(_get_build_directory("deepspeed_shm_comm", verbose=False)).parent


def clear_stale_locks(folder: Path) -> list[Path]:
    """Remove the lock files below `folder` that nobody holds; returns them.

    A holder keeps its lock file open. While a stale one exists nobody can make a new one, and stale ones are removed
    under a lock of our own, so a live one is never taken for stale.
    """
    with (folder / ".ptq-guard").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        locks = [lock.resolve() for lock in folder.glob("*/lock")]
        held = _held() if locks else set()
        stale = [lock for lock in locks if lock not in held]
        for lock in stale:
            lock.unlink()
    return stale


def _held() -> set[Path]:
    """Every file that a process of ours has open."""
    found: set[Path] = set()
    for process in psutil.process_iter():
        try:
            found |= {Path(file.path) for file in process.open_files()}
        except psutil.Error:
            continue  # gone, or another user's, whose folder is another too
    return found
