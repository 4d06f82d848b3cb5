"""Clearing the store away: folders that nothing names, and what killed commands left. Never what a row names.

Someone may be about to name a folder: `add_version` and `stage_artifact` place it first and write the row then, and
touch a folder that they find there. So only what is older than an hour goes, and it is taken out of sight by one
rename inside a write transaction, in which nobody can write a row.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Connection

from orchestrator.registry.storage.engine import Registry
from orchestrator.registry.storage.tables import artifacts, dataset_versions
from orchestrator.sharing import account_name

#: Longer than anything takes between placing a folder and naming it.
YOUNG_SECONDS = 3600.0
TRASH = ".gc-"


@dataclass(frozen=True)
class Garbage:
    path: Path
    bytes: int
    why: str
    owner: str = ""  #: in a shared home: another account, which alone can remove it


def find_garbage(registry: Registry, *, now: float) -> list[Garbage]:
    """What `collect` would remove."""
    with registry.read() as connection:
        named = _named(registry, connection)
    return sorted(_unnamed(registry, named, now), key=lambda found: found.path)


def collect(registry: Registry, *, now: float) -> list[Garbage]:
    """Remove it, as far as it is this account's. Killed at any moment it leaves every named folder whole."""
    removed = []
    for found in find_garbage(registry, now=now):
        if found.owner:
            continue
        trash = found.path.with_name(f"{TRASH}{uuid.uuid4().hex[:12]}")
        with registry.write() as connection:
            if found.path in _named(registry, connection) or not _old(found.path, now) or _held(found.path):
                continue
            found.path.rename(trash)
        _remove(trash)
        removed.append(found)
    return removed


def _named(registry: Registry, connection: Connection) -> set[Path]:
    datasets = connection.execute(sa.select(dataset_versions.c.digest)).scalars()
    prompts = connection.execute(sa.select(artifacts.c.digest)).scalars()
    return {registry.paths.dataset(digest) for digest in datasets} | {registry.paths.artifact(d) for d in prompts}


def _unnamed(registry: Registry, named: set[Path], now: float) -> Iterator[Garbage]:
    store = registry.paths.store
    for folder in (store / "datasets", store / "artifacts"):
        for path in _entries(folder):
            if path not in named and _old(path, now) and not _last_copy(path, named):
                yield _garbage(path, "left by a killed command" if path.name.startswith(".") else "nothing names it")
    for path in _entries(store):
        if path.name.startswith(".") and _old(path, now) and not _held(path):
            yield _garbage(path, "left by a killed command")


def _garbage(path: Path, why: str) -> Garbage:
    uid = path.lstat().st_uid
    return Garbage(path, _size(path), why, "" if os.getuid() in {0, uid} else account_name(uid))


def _last_copy(path: Path, named: set[Path]) -> bool:
    """A named folder that was moved aside while its successor never came: `ptq doctor --fix` puts it back."""
    digest = path.name.removeprefix(".").partition(".")[0]
    final = path.with_name(digest)
    return path.name.endswith(".old") and final in named and not final.exists()


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _old(path: Path, now: float) -> bool:
    """Of what a killed clearing left nobody can want anything."""
    try:
        return path.name.startswith(TRASH) or now - path.lstat().st_mtime > YOUNG_SECONDS
    except FileNotFoundError:
        return False


def _held(path: Path) -> bool:
    """Whether the maker of a staging folder lives: it holds a lock on it."""
    if not path.is_dir():
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # another account's own: nothing that we could remove
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    total = 0
    for file in files:
        with contextlib.suppress(OSError):
            total += file.lstat().st_size if file.is_symlink() or file.is_file() else 0
    return total


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
