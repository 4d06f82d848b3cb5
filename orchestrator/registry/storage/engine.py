"""The one door to the database: `Registry.open`, then short `read()` and `write()` transactions.

    registry = Registry.open(load_settings(), create=True)
    with registry.write() as connection:
        connection.execute(jobs.insert().values(…))

Above this folder nobody knows which database it is.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy
from sqlalchemy import Connection, Engine, exc

from orchestrator.errors import NotFound, RegistryUnusable
from orchestrator.paths import HomePaths
from orchestrator.registry.storage import sqlite
from orchestrator.registry.storage.migrations import HEAD, REVISIONS
from orchestrator.registry.storage.tables import metadata
from orchestrator.settings import REGISTRY_FILE, Settings

#: How long a transaction waits for another process's write. Writes take milliseconds; a minute means that one hangs.
BUSY_SECONDS = 60.0
LOCAL = "localhost"


class Registry:
    """Use `Registry.open`. May be shared by the threads of one process; not across a fork."""

    def __init__(self, settings: Settings, engine: Engine, *, create: bool) -> None:
        self.settings = settings
        self.paths = HomePaths(settings.home)
        self._engine = engine
        self._create = create
        self._ready = False
        self._empty: Engine | None = None
        self._watch: sqlite.Watch | None = None

    @classmethod
    def open(cls, settings: Settings, *, create: bool = False, busy_seconds: float = BUSY_SECONDS) -> Registry:
        """Open the registry that `settings` name.

        `create=True` allows one that does not exist yet: reads see empty tables, and the first write makes the
        folder, the file and the schema. Raises NotFound (missing, `create=False`) and RegistryUnusable.
        """
        registry = cls(settings, _engine(settings, busy_seconds), create=create)
        if not registry.exists() and not create:
            raise NotFound("there is no registry here", where=registry.where, hint=NO_REGISTRY)
        return registry

    @property
    def where(self) -> str:
        """The database, for messages (without a password)."""
        url = self._engine.url
        return str(url.database) if sqlite.is_sqlite(url) else url.render_as_string(hide_password=True)

    @property
    def box(self) -> str:
        """The name under which this machine's runs and slots are entered.

        A file serves one machine, whatever that is called today: its name may come from a network, or belong to a
        container that is made anew each time. Where machines share a database, each goes by its own name.
        """
        return LOCAL if sqlite.is_sqlite(self._engine.url) else socket.gethostname()

    def exists(self) -> bool:
        """Whether the registry is there; raises RegistryUnusable when its schema is not the one known here."""
        if not self._ready:
            if sqlite.is_sqlite(self._engine.url) and not sqlite.file_of(self._engine.url).exists():
                return False
            with self._translated(), self._engine.connect() as connection:
                self._ready = self._holds_schema(connection)
        return self._ready

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent snapshot. Nothing done here is kept."""
        if not self.exists():
            with self._empty_tables().connect() as connection:
                yield connection
            return
        with self._translated(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction that holds the write lock from its start; committed at the end, rolled back on any exception.

        Keep it short: no file, network or tensor work inside.
        """
        if not self.exists():
            self.create()
        with self._translated(), self._engine.connect() as plain:
            connection = plain.execution_options(**{sqlite.WRITE_OPTION: True})
            with connection.begin():
                yield connection

    def create(self) -> bool:
        """Make the registry if it is missing; False when it was there. Two processes may do this at the same time.

        Raises RegistryUnusable also where jobs and runs of another one lie: their numbers would be given again.
        """
        if self.exists():
            return False
        with self._translated():
            if sqlite.is_sqlite(self._engine.url):
                file = sqlite.file_of(self._engine.url)
                made = sqlite.create_file(file, first=lambda: refuse_remains(self.paths))
            else:
                refuse_remains(self.paths)
                made = _create_schema(self._engine)
        if not self.exists():
            raise RegistryUnusable("the registry was made and is gone again", where=self.where)
        return made

    def snapshot(self, target: Path) -> None:
        """Copy the database into a new file while others go on reading and writing. Raises RegistryUnusable."""
        if not sqlite.is_sqlite(self._engine.url):
            raise RegistryUnusable(
                "this database is not a file", where=self.where, hint="use its own backup, for example `pg_dump`"
            )
        if not self.exists():
            raise NotFound("there is no registry here", where=self.where, hint=NO_REGISTRY)
        with self._translated():
            sqlite.copy_file(sqlite.file_of(self._engine.url), target)

    def changes(self) -> int | None:
        """A number that is another one after each write of anybody's; None where the database does not tell.

        It costs microseconds: who looks several times a second whether anything has happened asks this first.
        """
        if not sqlite.is_sqlite(self._engine.url) or not self.exists():
            return None
        with self._translated():
            if self._watch is None:
                self._watch = sqlite.Watch(sqlite.file_of(self._engine.url))
            return self._watch.changes()

    def close(self) -> None:
        """Give the connections back. The registry may be used again afterwards."""
        self._engine.dispose()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._empty is not None:
            self._empty.dispose()
            self._empty = None

    def _holds_schema(self, connection: Connection) -> bool:
        if not sqlalchemy.inspect(connection).has_table("alembic_version"):
            if sqlite.is_sqlite(self._engine.url):
                raise RegistryUnusable(
                    "this file is not a registry of ptq", where=self.where, hint="move it away, or set PTQ_HOME"
                )
            return False
        revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        if revision == HEAD:
            return True
        if revision in REVISIONS:
            raise RegistryUnusable(
                f"the registry is of an older ptq (schema {revision}; this one needs {HEAD})",
                where=self.where,
                hint="stop the worker, then bring it up to date with `ptq init --migrate`",
            )
        raise RegistryUnusable(
            f"the registry is of a newer ptq (schema {revision}; this one knows {HEAD})",
            where=self.where,
            hint="install the newer ptq (`pip install --upgrade ptq`), or set PTQ_HOME to another folder",
        )

    def _empty_tables(self) -> Engine:
        if self._empty is None:
            self._empty = sqlite.in_memory()
            metadata.create_all(self._empty)
        return self._empty

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what the database and the disk refuse into a clear message; violated constraints and own faults pass."""
        try:
            yield
        except (exc.IntegrityError, exc.ProgrammingError, exc.DataError, exc.InterfaceError):
            raise
        except exc.DatabaseError as error:
            raise _unusable(str(error.orig), self.where) from error


def refuse_remains(paths: HomePaths) -> None:
    """Raises RegistryUnusable where folders of jobs or runs lie and no registry that knows them."""
    found = paths.numbered()
    if found:
        names = " ".join(folder.name for folder in found)
        raise RegistryUnusable(
            "this is left of another registry; a new one would give its numbers to other jobs",
            where=str(found[0]),
            hint=f"put that registry back, set PTQ_HOME to an empty folder, or there: `mkdir old && mv {names} old/` "
            "(no run may be under way)",
        )


@dataclass(frozen=True)
class Migrated:
    before: str  #: schema
    backup: Path | None  #: the registry as it was; None when nothing had to be changed, or it is no file


def migrate(settings: Settings, *, now: float, alone: AbstractContextManager[None] | None = None) -> Migrated:
    """Bring an older registry up to date, after a copy of it was put beside it. Raises NotFound and RegistryUnusable.

    Killed at any moment it leaves the old schema or the new one: the change is one transaction. `alone`: entered before
    anything is changed; raises where a worker would go on with the old one.
    """
    engine = _engine(settings, BUSY_SECONDS)
    registry = Registry(settings, engine, create=False)
    if sqlite.is_sqlite(engine.url) and not sqlite.file_of(engine.url).exists():
        raise NotFound("there is no registry here", where=registry.where, hint=NO_REGISTRY)
    from orchestrator.registry.storage.migrate import upgrade

    backup = None
    try:
        with ExitStack() as until_written, registry._translated(), engine.connect() as plain:
            connection = plain.execution_options(**{sqlite.WRITE_OPTION: True})
            with connection.begin():  # holds the write lock: the copy is the very state that is migrated
                before = str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar())
                if before in REVISIONS and before != HEAD:
                    if alone is not None:
                        until_written.enter_context(alone)
                    backup = _copy_before(engine, before, now) if sqlite.is_sqlite(engine.url) else None
                    upgrade(connection)
        registry.exists()
    finally:
        engine.dispose()
    return Migrated(before, backup)


def _copy_before(engine: Engine, schema: str, now: float) -> Path:
    file = sqlite.file_of(engine.url)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    copy = file.with_name(f"{file.stem}-schema-{schema}-{stamp}{file.suffix}")
    sqlite.copy_file(file, copy)
    return copy


NO_REGISTRY = "make one here with `ptq init`, or set PTQ_HOME to the folder that holds one"


def _engine(settings: Settings, busy_seconds: float) -> Engine:
    if settings.registry_url == f"sqlite:///{settings.home / REGISTRY_FILE}":
        # Built by parts: a home such as "what?" would end the path of a parsed URL.
        url = sqlalchemy.URL.create("sqlite", database=str(settings.home / REGISTRY_FILE))
    else:
        url = _parsed(settings.registry_url)
    if sqlite.is_sqlite(url):
        return sqlite.engine(url, busy_seconds)
    try:
        return sqlalchemy.create_engine(url)
    except (exc.ArgumentError, exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise RegistryUnusable(f"no driver for this database ({error})", where="PTQ_REGISTRY") from error


def _parsed(text: str) -> sqlalchemy.URL:
    try:
        return sqlalchemy.make_url(text)
    except exc.ArgumentError as error:
        raise RegistryUnusable(
            "not a SQLAlchemy URL", where="PTQ_REGISTRY", hint="unset it, or write e.g. sqlite:////folder/registry.db"
        ) from error


def _create_schema(engine: Engine) -> bool:
    from orchestrator.registry.storage.migrate import upgrade

    with engine.begin() as connection:
        upgrade(connection)
    return True


def _unusable(reason: str, where: str) -> RegistryUnusable:
    for part, (message, hint) in _REFUSALS.items():
        if part in reason:
            return RegistryUnusable(message, where=where, hint=hint)
    return RegistryUnusable(f"the database refused: {reason}", where=where)


_REFUSALS: dict[str, tuple[str, str]] = {
    "database is locked": (
        "another process holds the write lock",
        "see who has it open with `fuser -v registry.db`, then try again",
    ),
    "database or disk is full": ("the disk is full", "make room (`df -h`), then try again"),
    "disk I/O error": ("the disk refuses to read or write", "look at `df -h` and the system's log (`dmesg`)"),
    "readonly database": ("the registry may not be written", "get write permission for the file and its folder"),
    "unable to open database file": (
        "the registry cannot be opened",
        "check that its folder exists and that you may write in it",
    ),
    "file is not a database": ("this file is not a database", "move it away, or set PTQ_HOME to another folder"),
    "malformed": (
        "the database is damaged",
        "`ptq restore BACKUP` makes a new home; `sqlite3 registry.db .recover` saves what is readable",
    ),
}
