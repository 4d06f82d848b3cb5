"""SQLite as the registry needs it: real transactions, WAL, a durable commit, and never on a network filesystem.

Sources: sqlite.org/wal.html ("all processes must be on the same host"), sqlite.org/pragma.html,
SQLAlchemy's "Serializable isolation / Savepoints / Transactional DDL" for pysqlite.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Engine, event
from sqlalchemy.pool import NullPool, StaticPool

from orchestrator.errors import RegistryUnusable
from orchestrator.paths import fsync_file, fsync_folder
from orchestrator.registry.storage.filesystem import network_filesystem
from orchestrator.sharing import is_shared

#: An execution option of a connection: its transaction takes the write lock at its start.
WRITE_OPTION = "ptq_write"


def is_sqlite(url: sqlalchemy.URL) -> bool:
    return url.get_backend_name() == "sqlite"


def file_of(url: sqlalchemy.URL) -> Path:
    return Path(url.database or "")


def engine(url: sqlalchemy.URL, busy_seconds: float) -> Engine:
    """An engine on a registry file (which need not exist yet; it is never made by connecting)."""
    if not url.database or url.database == ":memory:" or url.query:
        raise RegistryUnusable("the registry must be a plain file", where=str(url), hint="unset PTQ_REGISTRY")
    refuse_network_filesystem(file_of(url))
    made = sqlalchemy.create_engine(url, connect_args={"timeout": busy_seconds})
    _with_real_transactions(made)
    return made


class Watch:
    """A connection of its own that never writes: SQLite counts for it what all others commit.

    sqlite.org/pragma.html#pragma_data_version: the number changes by others' commits only.
    """

    def __init__(self, path: Path) -> None:
        self._made = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def changes(self) -> int:
        return int(self._made.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        self._made.close()


def in_memory() -> Engine:
    """An empty database of this process, for reading a registry that does not exist yet."""
    return sqlalchemy.create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})


def create_file(path: Path, *, first: Callable[[], None]) -> bool:
    """Make the registry file with its schema, whole or not at all; False when another process was faster.

    `first`: may refuse, when it is sure that nobody was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _folder_lock(path.parent):
            if path.exists():
                return False
            first()
            _build(path)
    except OSError as error:
        raise RegistryUnusable(
            f"the registry cannot be made here ({error.strerror or error})",
            where=str(path),
            hint="set PTQ_HOME to a folder on a local disk where you may write",
        ) from error
    return True


def copy_file(source: Path, target: Path) -> None:
    """One consistent copy of a database that others may be writing to, whole or not at all (SQLite's online backup)."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with _plain(source) as old, _plain(temporary) as new:
            old.backup(new)
        fsync_file(temporary)
        temporary.rename(target)
        fsync_folder(target.parent)
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RegistryUnusable(
            f"no copy of the registry could be made ({reason})",
            where=str(target),
            hint="make room (`df -h`), or name a file in a folder where you may write",
        ) from error
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)


@contextlib.contextmanager
def _plain(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, timeout=60)
    try:
        yield connection
    finally:
        connection.close()


def refuse_network_filesystem(path: Path) -> None:
    kind = network_filesystem(path)
    if kind:
        raise RegistryUnusable(
            f"this folder is on a network filesystem ({kind}), where SQLite loses data",
            where=str(path.parent),
            hint="set PTQ_HOME to a folder on a local disk of the machine that runs the worker",
        )


def _build(path: Path) -> None:
    """Under the lock: a whole file beside it, then a rename, so that nobody ever opens half a registry."""
    from orchestrator.registry.storage.migrate import upgrade

    for left_behind in path.parent.glob(f".{path.name}.*.partial*"):  # a creator was killed
        left_behind.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    made = sqlalchemy.create_engine(sqlalchemy.URL.create("sqlite", database=str(temporary)), poolclass=NullPool)
    _with_real_transactions(made)
    try:
        with made.connect() as connection:
            connection = connection.execution_options(**{WRITE_OPTION: True})
            with connection.begin():
                upgrade(connection)
        _turn_wal_on(temporary, made)
        if is_shared(path.parent):
            temporary.chmod(0o660)  # SQLite gives its side files the mode of the file, whatever the umask
        fsync_file(temporary)
        temporary.rename(path)
        fsync_folder(path.parent)
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)


def _turn_wal_on(path: Path, made: Engine) -> None:
    """WAL is a property of the file, set here once: to set it while others write fails at once, without waiting."""
    raw = made.raw_connection()
    try:
        mode = raw.cursor().execute("PRAGMA journal_mode=WAL").fetchone()
    finally:
        raw.close()
    if mode is None or mode[0] != "wal":
        raise RegistryUnusable(
            "this filesystem does not support SQLite's write-ahead log",
            where=str(path.parent),
            hint="set PTQ_HOME to a folder on a local disk",
        )


def _with_real_transactions(made: Engine) -> None:
    """Python's driver begins transactions late and at its own discretion; here it begins none, and SQLAlchemy does."""

    @event.listens_for(made, "connect")
    def on_connect(dbapi: Any, _record: Any) -> None:
        dbapi.isolation_level = None
        cursor = dbapi.cursor()
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA synchronous=FULL")  # a commit survives a power cut
        cursor.close()

    @event.listens_for(made, "begin")
    def on_begin(connection: sqlalchemy.Connection) -> None:
        # A deferred transaction that reads and then writes fails at once when another wrote in between; the busy
        # timeout does not help there. So a writer says so first.
        write = connection.get_execution_options().get(WRITE_OPTION, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """A lock on the folder itself: no lock file is left, and the kernel frees it when its holder dies."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
