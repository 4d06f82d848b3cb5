"""run.log, which a program must not be able to fill a disk with.

Everything that a run prints goes to run.log. When that holds more than `MOST` bytes, the supervisor moves it to
run.log.old, over what lay there, and the file goes on empty: two files, about twice `MOST` in all, and what a program
prints between two looks (0.2 s). The program keeps its descriptor, which appends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from orchestrator.paths import RunPaths

MOST = 32 << 20
TAIL = 65536  #: bytes of the end that a verdict may rest on


def bound(paths: RunPaths, most: int = MOST) -> bool:
    """Move the log away if it has grown too long; whether it was. What is printed meanwhile may be lost, not more."""
    with contextlib.suppress(OSError):  # a full disk, a folder that is gone: neither must end a run
        if paths.log.stat().st_size <= most:
            return False
        try:
            shutil.copyfile(paths.log, paths.old_log)
        finally:  # also where there is no room for a copy
            os.truncate(paths.log, 0)
        return True
    return False


def tail(paths: RunPaths, size: int = TAIL) -> str:
    """The end of what the run has printed, in whole lines."""
    end = read_tail(paths.log, size)
    missing = size - len(end.encode())
    return (read_tail(paths.old_log, missing) if missing > 0 else "") + end


def read_tail(path: Path, size: int = TAIL) -> str:
    """The end of a file, in whole lines."""
    try:
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - size))
            data = file.read()
    except OSError:  # not there yet, or no longer
        return ""
    if length > size:
        data = data.partition(b"\n")[2]
    return data.decode(errors="replace")
