"""The lock files of torch's compiled extensions (DeepSpeed builds one for its communication on CPU).

torch marks a build or a load by a file named `lock` (`torch.utils.file_baton`), and everybody else waits until it is
gone. A process that is killed meanwhile leaves it behind, and every later run with DeepSpeed would wait for ever,
silently.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import psutil
from torch.utils.cpp_extension import _get_build_directory

_OP = "deepspeed_shm_comm"
_LOOK_SECONDS = 0.2  # at another program's lock


def load_communication() -> None:
    """DeepSpeed's op for sums between processes on CPU, compiled the first time on a machine (about 25 s).

    Loaded here, before DeepSpeed does, which then takes what is loaded: nobody waits for torch's lock file.
    """
    from deepspeed.comm.torch import build_shm_op  # heavy, and needed with DeepSpeed only

    with alone_in(extensions_folder(), _OP), redirect_stdout(StringIO()):  # DeepSpeed will say again that it is there
        build_shm_op()


def extensions_folder() -> Path:
    """Where this torch keeps the extensions that it compiles, one folder each."""
    return Path(_get_build_directory(_OP, verbose=False)).parent


@contextmanager
def alone_in(folder: Path, extension: str | None = None) -> Iterator[None]:
    """One process of ptq at a time inside, and no lock file below `folder` of a process that was killed.

    The kernel takes our lock from a holder that dies, however it dies: whoever waits goes on, and finds the file that
    the dead one has left. `extension`: nobody else works on it either: another program knows nothing of our lock.
    """
    with (folder / ".ptq-guard").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        _clear_stale_locks(folder)
        while extension is not None and (folder / extension / "lock").exists():
            time.sleep(_LOOK_SECONDS)
            _clear_stale_locks(folder)
        yield


def _clear_stale_locks(folder: Path) -> None:
    """A holder keeps its lock file open, so what no process has open is stale. While a stale one exists nobody can make
    a new one, and stale ones are removed under our lock, so a live one is never taken for stale."""
    locks = [lock.resolve() for lock in folder.glob("*/lock")]
    held = _held() if locks else set()
    for lock in locks:
        if lock not in held:
            lock.unlink(missing_ok=True)  # it may have been let go of in the meantime
            print(f"removed {lock}: whoever compiled or loaded there was killed", flush=True)


def _held() -> set[Path]:
    """Every file that a process of ours has open."""
    found: set[Path] = set()
    for process in psutil.process_iter():
        try:
            found |= {Path(file.path) for file in process.open_files()}
        except psutil.Error:
            continue  # gone, or another user's, whose folder is another too
    return found
