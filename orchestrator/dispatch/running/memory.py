"""A limit on a run's host memory: the kernel's, through a cgroup of its own, where that is allowed; else ours.

A cgroup needs cgroup v2 and a branch of it that belongs to this account: systemd's `Delegate=yes` gives a service one.
There the kernel ends the whole run at once (memory.oom.group) and counts it. Elsewhere the supervisor adds up once a
second what the run's processes hold for themselves, and ends the run; memory may grow beyond the limit for that second.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


class Cgroup:
    """One run's branch of the control groups."""

    def __init__(self, folder: Path, outside: Path) -> None:
        self.folder, self._outside = folder, outside

    @classmethod
    def make(cls, name: str, limit: int, *, root: Path = CGROUPS, own: Path | None = None) -> Cgroup | None:
        """None where this account may not."""
        mine = own or own_cgroup(root)
        if mine is None:
            return None
        for base in (mine.parent, mine):
            try:
                if base.stat().st_uid != os.geteuid() or not base.is_relative_to(root):
                    continue
                (base / "cgroup.subtree_control").write_text("+memory")  # refused where processes live in `base`
                folder = base / name
                folder.mkdir(exist_ok=True)
                made = cls(folder, mine)
                (folder / "memory.max").write_text(str(limit))
                (folder / "memory.swap.max").write_text("0")
                (folder / "memory.oom.group").write_text("1")
                with made.inside():  # whether this process may go there and come back is known only by doing it
                    pass
            except OSError:
                with contextlib.suppress(OSError):
                    (base / name).rmdir()
                continue
            return made
        return None

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Children that are born here live there, and so do theirs; this process itself comes back."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (self._outside / "cgroup.procs").write_text(str(os.getpid()))

    def killed(self) -> bool:
        """Whether the kernel has ended the run for its limit."""
        with contextlib.suppress(OSError):
            for line in (self.folder / "memory.events").read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill" and count.strip() != "0":
                    return True
        return False

    def close(self) -> None:
        """Once nobody lives in it. Who is left keeps it."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def own_cgroup(root: Path = CGROUPS) -> Path | None:
    """This process's cgroup; None without cgroup v2 as the one hierarchy."""
    if not (root / "cgroup.controllers").exists():
        return None
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return root / line[3:].lstrip("/")
    return None


def held_by(pids: Iterable[int]) -> int:
    """Bytes that these processes hold for themselves, and what they share in memory once.

    Weights that are mapped from a file are not counted: the kernel drops those pages when it needs room.
    """
    own, shared = 0, 0
    for pid in pids:
        numbers = _status(pid)
        own += numbers.get("RssAnon", 0) + numbers.get("VmSwap", 0)
        shared = max(shared, numbers.get("RssShmem", 0))
    return own + shared


def _status(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name in {"RssAnon", "RssShmem", "VmSwap"}:
            found[name] = int(value.split()[0]) * 1024
    return found
