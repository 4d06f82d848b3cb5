"""One worker per home and box: a lock that the kernel frees when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import PtqError

_PATIENCE = 1.0  #: seconds: a look at the lock (`holder`) takes it for an instant


class WorkerPresent(PtqError):
    """A worker is at work here already."""


@contextmanager
def worker_lock(path: Path) -> Iterator[None]:
    """Be the worker here; raises WorkerPresent when there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _open(path)
    try:
        if not _take(descriptor):
            pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "?"
            raise WorkerPresent(
                f"a worker is at work here already (pid {pid})", where=str(path.parent),
                hint=f"it takes the jobs that you submit; stop it with `kill {pid}`",
            )  # fmt: skip
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def holder(path: Path) -> int | None:
    """The pid of the worker here, or None."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
    except PermissionError:
        # Another account's, from when it worked here. It lies in a folder of ours, and nobody holds it: a new file.
        if holder(path) is not None:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        path.unlink()
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)


def _take(descriptor: int) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
