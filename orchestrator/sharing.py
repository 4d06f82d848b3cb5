"""A PTQ_HOME that a group of accounts shares: who may write what, whatever umask each of them has.

    PTQ_HOME               2770   everybody makes the registry's side files in it and opens those that another has made
    registry.db            0660   SQLite gives its side files the same
    jobs/ runs/ tracking/  2750   one account works: the one that made the home; the group reads
    store/ and its shelves 3770   everybody adds; nobody removes what another has added
    everything else        0640, folders 2750

The folders' setgid bit hands the group on to all that is made in them. A home without it is one person's.

The home has no sticky bit: where `fs.protected_regular` is 2 (Debian), the kernel refuses open(O_CREAT) of another
account's file in a sticky folder that a group may write, and so SQLite opens its own side files: one member's
registry.db-wal would make the registry read-only for all others. On the shelves everybody makes new names only.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

OWN_UMASK = 0o027  #: in a shared home: the group reads, others see nothing
_WORKED_IN = ("jobs", "runs", "tracking")
_SHELVES = ("store", "store/datasets", "store/artifacts")


def is_shared(home: Path) -> bool:
    try:
        mode = home.stat().st_mode
    except OSError:
        return False
    return bool(mode & stat.S_ISGID) and bool(mode & stat.S_IWGRP)


def keep_to_the_group(home: Path) -> None:
    """What this process writes from now on fits the home, whatever umask its account has."""
    if is_shared(home):
        os.umask(OWN_UMASK)


def share(home: Path, gid: int) -> None:
    """Make a home, new or old, one of this group. Raises PermissionError: only its owner or root may."""
    for name in ("", *_WORKED_IN, *_SHELVES):
        (home / name).mkdir(parents=True, exist_ok=True)
    ours = [home, *home.glob("registry.db*"), *home.glob("worker.lock")]
    for name in (*_WORKED_IN, "store"):
        ours += [home / name, *(home / name).rglob("*")]
    for path in ours:
        if not path.is_symlink() and not _is_anothers(path.stat(), gid):
            os.chown(path, -1, gid)  # first: it clears the setgid bit
            path.chmod(_mode(path, path.relative_to(home).as_posix()))


def _is_anothers(found: os.stat_result, gid: int) -> bool:
    """What a member has added to a shared home has its group and its mode, and only that account may set them."""
    return os.getuid() not in {0, found.st_uid} and found.st_gid == gid


def _mode(path: Path, name: str) -> int:
    if path.is_dir():
        return 0o2770 if name == "." else 0o3770 if name in _SHELVES else 0o2750
    return 0o660 if name.startswith("registry.db") else 0o640


def account_name(uid: int) -> str:
    """The account's own name: unlike LOGNAME, nobody chooses it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a container that runs under a number without a name
        return str(uid)
