"""The registry's door: creation, transactions, refusals. Real files, real processes."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from registry_proofs import first_registry

from orchestrator.cli.main import main
from orchestrator.dispatch import lock
from orchestrator.errors import NotFound, RegistryUnusable
from orchestrator.registry import jobs, metrics, runs
from orchestrator.registry.storage import migrations
from orchestrator.registry.storage.engine import Migrated, Registry, migrate
from orchestrator.registry.storage.migrate import configuration, upgrade
from orchestrator.registry.storage.tables import dataset_versions, datasets, metadata
from orchestrator.settings import Settings, load_settings


@pytest.fixture
def settings(home: Path) -> Settings:
    return load_settings()


def add(connection: sqlalchemy.Connection, name: str) -> None:
    connection.execute(datasets.insert().values(name=name, created_at=0.0))


def names(registry: Registry) -> list[str]:
    with registry.read() as connection:
        return list(connection.execute(sqlalchemy.select(datasets.c.name).order_by(datasets.c.id)).scalars())


def schema(connection: sqlalchemy.Connection) -> dict[str, list[str]]:
    """Each table and index with the parts of its definition, whatever their order."""
    rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").all()
    return {
        name: sorted(part.strip(" )") for part in " ".join(_plain(sql).split()).replace("( ", ", ").split(", "))
        for name, sql in rows
        if name != "alembic_version"
    }


def _plain(sql: str) -> str:
    """A table that was renamed, and one that was copied, has its own name in quotes and other white space."""
    return sql.replace('"', "").replace("\n", " ").replace("\t", " ")


def write(registry: Registry, *statements: str) -> None:
    with registry.write() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_migrations_make_the_schema_of_the_tables() -> None:
    by_migrations, by_tables = (sqlalchemy.create_engine("sqlite://") for _ in range(2))
    metadata.create_all(by_tables)
    with by_migrations.begin() as migrated, by_tables.connect() as created:
        upgrade(migrated)
        assert compare_metadata(MigrationContext.configure(migrated), metadata) == []
        # Alembic does not compare check constraints and partial indexes; the text of the schema does.
        assert schema(migrated) == schema(created)
    by_migrations.dispose()
    by_tables.dispose()


def test_the_list_of_revisions_is_the_files() -> None:
    scripts = ScriptDirectory.from_config(configuration())
    assert tuple(reversed([script.revision for script in scripts.walk_revisions()])) == migrations.REVISIONS
    assert scripts.get_current_head() == migrations.HEAD


def test_a_missing_registry_is_not_made_by_opening_or_reading(settings: Settings, home: Path) -> None:
    with pytest.raises(NotFound, match="ptq init"):
        Registry.open(settings)
    registry = Registry.open(settings, create=True)
    assert names(registry) == []
    registry.close()
    assert list(home.iterdir()) == []


def test_the_first_write_makes_it_and_others_see_it(settings: Settings, home: Path) -> None:
    early = Registry.open(settings, create=True)
    assert names(early) == []
    writer = Registry.open(settings, create=True)
    with writer.write() as connection:
        add(connection, "a")
    assert names(early) == ["a"]
    assert names(Registry.open(settings)) == ["a"]
    early.close()
    writer.close()


def test_wal_full_sync_foreign_keys(settings: Settings) -> None:
    registry = Registry.open(settings, create=True)
    with registry.write() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 60_000}
    with pytest.raises(sqlalchemy.exc.IntegrityError), registry.write() as connection:
        connection.execute(
            dataset_versions.insert().values(
                dataset_id=99, version=1, digest="", fields=[], splits={}, source={}, created_at=0, created_by=""
            )
        )
    registry.close()


def test_an_exception_rolls_the_whole_write_back(settings: Settings) -> None:
    registry = Registry.open(settings, create=True)
    insert = "INSERT INTO datasets (name, created_at) VALUES ('a', 0)"
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        write(registry, insert, insert)
    assert names(registry) == []
    registry.close()


def test_a_read_is_one_snapshot_and_never_blocks_a_writer(settings: Settings) -> None:
    registry = Registry.open(settings, create=True)
    with registry.write() as connection:
        add(connection, "a")
    count = sqlalchemy.select(sqlalchemy.func.count()).select_from(datasets)
    with registry.read() as reader:
        assert reader.execute(count).scalar() == 1
        with registry.write() as connection:
            add(connection, "b")
        assert reader.execute(count).scalar() == 1
    assert names(registry) == ["a", "b"]
    registry.close()


def test_a_writer_takes_the_lock_at_its_start(settings: Settings) -> None:
    registry = Registry.open(settings, create=True)
    registry.create()
    second = Registry.open(settings, busy_seconds=0.05)
    with registry.write(), pytest.raises(RegistryUnusable, match="write lock"), second.write():
        pytest.fail("two writers at once")
    registry.close()
    second.close()


WRITE = """
import sys
from orchestrator.registry.storage.engine import Registry
from orchestrator.registry.storage.tables import datasets
from orchestrator.settings import load_settings
sys.stdin.readline()
registry = Registry.open(load_settings(), create=True)
for number in range(5):
    with registry.write() as connection:
        connection.execute(datasets.insert().values(name=f"{sys.argv[1]}-{number}", created_at=0.0))
"""


def test_processes_that_make_the_same_registry_at_once(settings: Settings, home: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, str(n)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for n in range(4)
    ]
    for process in processes:  # all have started before the first may go on
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0
    assert len(names(Registry.open(settings))) == 20
    assert [path.name for path in home.iterdir() if "partial" in path.name] == []


def test_what_a_killed_creator_left_is_removed(settings: Settings, home: Path) -> None:
    (home / ".registry.db.0badf00d.partial").write_bytes(b"half")
    registry = Registry.open(settings, create=True)
    assert registry.create() is True
    assert registry.create() is False
    registry.close()
    assert [path.name for path in home.iterdir()] == ["registry.db"]


def test_a_full_disk_is_said(settings: Settings) -> None:
    registry = Registry.open(settings, create=True)
    registry.create()
    fill = "INSERT INTO datasets (name, created_at) SELECT hex(randomblob(90)), 0 FROM sqlite_master, sqlite_master"
    with pytest.raises(RegistryUnusable, match="disk is full"):
        write(registry, "PRAGMA max_page_count=10", fill)
    registry.close()


def test_a_folder_that_may_not_be_written_is_said(settings: Settings, home: Path) -> None:
    (home / "file").write_text("")
    there = home / "file" / "home"
    refused = replace(settings, home=there, registry_url=f"sqlite:///{there}/registry.db")
    registry = Registry.open(refused, create=True)
    with pytest.raises(RegistryUnusable, match=r"(?s)cannot be made here.*PTQ_HOME"):
        registry.create()


def test_a_registry_that_turns_read_only_is_said(settings: Settings) -> None:
    registry = Registry.open(settings, create=True)
    registry.create()
    with pytest.raises(RegistryUnusable, match="may not be written"):
        write(registry, "PRAGMA query_only=ON", "DELETE FROM datasets")
    registry.close()


@pytest.mark.parametrize("content", [b"", b"this is a text, and not a database" * 50])
def test_a_file_that_is_no_registry_is_left_alone(settings: Settings, home: Path, content: bytes) -> None:
    (home / "registry.db").write_bytes(content)
    for create in (True, False):
        with pytest.raises(RegistryUnusable, match="move it away"):
            Registry.open(settings, create=create)
    assert (home / "registry.db").read_bytes() == content


@pytest.mark.parametrize(("revision", "hint"), [("0000", "ptq init --migrate"), ("9999", "newer ptq")])
def test_another_schema_is_refused_and_not_changed(
    settings: Settings, home: Path, revision: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry.open(settings, create=True)
    registry.create()
    registry.close()
    monkeypatch.setattr("orchestrator.registry.storage.engine.REVISIONS", ("0000", "0001"))
    with sqlite3.connect(home / "registry.db") as raw:
        raw.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    raw.close()
    with pytest.raises(RegistryUnusable, match=hint):
        Registry.open(settings)
    raw = sqlite3.connect(home / "registry.db")
    assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [(revision,)]
    raw.close()


def test_migrating_an_up_to_date_registry_changes_nothing(settings: Settings) -> None:
    registry = Registry.open(settings, create=True)
    with registry.write() as connection:
        add(connection, "a")
    assert migrate(settings, now=0.0) == Migrated(migrations.HEAD, None)
    assert names(registry) == ["a"]
    registry.close()


OLD_ROWS = """
UPDATE jobs SET result = 'succeeded';
INSERT INTO metrics VALUES (1, 'train', 'loss', 1, 3.0), (1, 'train', 'loss', 2, 2.5), (1, 'test', 'bleu', 2, 61.5);
INSERT INTO artifacts VALUES (1, 1, 1, 'sha256:2', 'head', '{"seed": 1}', 5, 0);
"""


def test_an_older_registry_is_migrated_on_request_with_a_copy_first(settings: Settings, home: Path) -> None:
    path = first_registry(home, OLD_ROWS)
    before = path.read_bytes()
    with pytest.raises(RegistryUnusable, match="ptq init --migrate"):
        Registry.open(settings)
    assert path.read_bytes() == before
    done = migrate(settings, now=0.0)
    assert done.before == "0001"
    assert done.backup is not None
    registry = Registry.open(settings)
    with registry.read() as connection:
        assert metrics.series(connection, 1, "train", "loss") == [(1, 3.0), (2, 2.5)]
        assert metrics.latest(connection, [1]) == {1: {"test": {"bleu": 61.5}, "train": {"loss": 2.5}}}
        assert connection.exec_driver_sql("SELECT job_id, summary, origin FROM artifacts").all() == [
            (1, '{"seed": 1}', None)
        ]
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
    registry.close()
    with sqlite3.connect(done.backup) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
        assert raw.execute("SELECT count(*) FROM metrics").fetchall() == [(3,)]
    raw.close()


OPEN_RUNS = """
INSERT INTO workers (id, host, pid, pid_started, boot_id, slots, started_at, heartbeat_at)
VALUES (1, 'monday', 1, 1, 'b', '[]', 0, 0), (2, 'tuesday', 1, 1, 'b', '[]', 0, 0);
INSERT INTO runs (id, worker_id, host, boot_id, token, started_at, ended_at) VALUES
(1, 1, 'monday', 'b', 't1', 0, NULL), (2, 2, 'tuesday', 'b', 't2', 0, NULL), (3, 1, 'monday', 'b', 't3', 0, 1);
INSERT INTO leases (id, run_id, host, slot, expires_at, released_at) VALUES
(1, 1, 'monday', 'cpu:0', 9, NULL), (2, 1, 'monday', 'cpu:1', 9, NULL), (3, 2, 'tuesday', 'cpu:0', 9, NULL),
(4, 3, 'monday', 'cpu:2', 5, 6);
"""


def test_runs_of_a_machine_that_was_called_otherwise_are_runs_of_this_one(settings: Settings, home: Path) -> None:
    first_registry(home, OPEN_RUNS)
    migrate(settings, now=0.0)
    registry = Registry.open(settings)
    with registry.read() as connection:
        assert [run.id for run in runs.open_runs(connection, registry.box)] == [1, 2]
        held = [(lease.slot, lease.run_id) for lease in runs.live_leases(connection, registry.box)]
        assert held == [("cpu:0", 2), ("cpu:1", 1)]  # given away twice: to the later run
        assert jobs.get_job(connection, 1).token is None
    registry.close()


def test_a_registry_is_not_migrated_under_a_worker(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would go on under its machine's name, and nobody would follow its runs."""

    def migrated() -> int:
        monkeypatch.setattr(sys, "argv", ["ptq", "init", "--migrate"])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    monkeypatch.setattr(lock, "_PATIENCE", 0.0)
    first_registry(home, OPEN_RUNS)
    with lock.worker_lock(home / "worker.lock"):
        assert migrated() == 1
    said = capsys.readouterr().err
    assert f"a worker is at work here already (pid {os.getpid()})" in said
    assert f"`kill {os.getpid()}`" in said
    with pytest.raises(RegistryUnusable, match="ptq init --migrate"):
        Registry.open(load_settings())
    assert list(home.glob("registry-schema-*")) == []
    assert migrated() == 0


@pytest.mark.parametrize("name", ["what?", "100%", "a#b", "名前"])
def test_awkward_home_names(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    registry = Registry.open(load_settings({"PTQ_HOME": str(folder)}), create=True)
    with registry.write() as connection:
        add(connection, "a")
    registry.close()
    assert (folder / "registry.db").is_file()


@pytest.mark.parametrize("url", ["sqlite://", "no url", "nosuchdatabase://x/y"])
def test_urls_that_cannot_work(settings: Settings, url: str) -> None:
    with pytest.raises(RegistryUnusable):
        Registry.open(replace(settings, registry_url=url), create=True)
