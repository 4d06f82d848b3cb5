"""A backup: the database and all that its rows name in the store, in one file, made while everything runs.

A tar file:

backup.json        {format, schema, made_at, home, registry: sha256, folders: [[kind, digest], …], missing: […]}
registry.db        one consistent copy (SQLite's online backup)
store/<kind>/<digest>/…

Not in it: the folders of jobs and runs (logs, checkpoints). A job that was running starts again after a restore.
"""

from __future__ import annotations

import json
import re
import shutil
import tarfile
import tempfile
import uuid
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from orchestrator.errors import BadInput, RegistryUnusable
from orchestrator.manifest import digest_of, file_sha256, manifest_faults
from orchestrator.paths import HomePaths, fsync_file, fsync_folder, place_new, read_json
from orchestrator.registry import jobs as job_verbs
from orchestrator.registry import reservations
from orchestrator.registry import runs as run_verbs
from orchestrator.registry.jobs import Move
from orchestrator.registry.lineage import with_stored_starts
from orchestrator.registry.storage.engine import Registry
from orchestrator.registry.storage.migrations import HEAD, REVISIONS
from orchestrator.registry.storage.tables import artifacts, bases, dataset_versions, jobs, runs, workers
from orchestrator.settings import REGISTRY_FILE, Settings
from orchestrator.states import LIVE, JobResult, JobState, Reason

FORMAT = 1
INDEX = "backup.json"
_STORED = re.compile(r".*/store/artifacts/([0-9a-f]{64})(|/.*)", re.DOTALL)
#: `ptq retry` starts again what is finished, unless it succeeded.
_MAY_START = sa.or_(jobs.c.result.is_(None), jobs.c.result != JobResult.SUCCEEDED.value)
_NAME = re.compile(r"store/(datasets|artifacts)/([0-9a-f]{64})/((?:[A-Za-z0-9_-][\w.-]*/)*[A-Za-z0-9_-][\w.-]*)")


@dataclass(frozen=True)
class Backup:
    path: Path
    bytes: int
    folders: int
    missing: list[str]  #: folders that rows name and the store lacks, or holds damaged


def write_backup(registry: Registry, output: Path, *, now: float) -> Backup:
    """Write the file, all at once or not at all. Raises BadInput, NotFound and RegistryUnusable."""
    if output.exists():
        raise BadInput("already exists", where=str(output), hint="choose a name that does not exist yet")
    if not output.absolute().parent.is_dir():
        raise BadInput("there is no such folder", where=str(output.parent))
    temporary = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.partial")
    copy = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.db")
    try:
        registry.snapshot(copy)
        named = _named(copy)
        there = [one for one in named if not manifest_faults(_folder(registry.paths, *one))]
        missing = [list(one) for one in named if one not in there]
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as file:
            index = {"format": FORMAT, "schema": HEAD, "made_at": now, "home": str(registry.paths.root)}
            index |= {"registry": file_sha256(copy), "folders": [list(one) for one in there], "missing": missing}
            _add_bytes(file, INDEX, json.dumps(index, indent=1).encode(), now)
            file.add(copy, REGISTRY_FILE)
            for kind, digest in there:
                folder = _folder(registry.paths, kind, digest)
                for path in sorted(folder.rglob("*")):
                    if path.is_file():
                        file.add(path, f"store/{kind}/{folder.name}/{path.relative_to(folder).as_posix()}")
        fsync_file(temporary)
        place_new(temporary, output)
    except OSError as error:
        raise RegistryUnusable(
            f"the backup cannot be written ({error.strerror or error})", where=str(output)
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
        copy.unlink(missing_ok=True)
    lost = [str(_folder(registry.paths, kind, digest)) for kind, digest in missing]
    return Backup(output, output.stat().st_size, len(there), lost)


def restore(settings: Settings, source: Path, *, now: float) -> int:
    """Make a registry from a backup in a home that has none; how many jobs are queued again.

    Everything is unpacked and checked beside it first; the database comes last. Raises BadInput for a file that is
    not a whole backup, or a home with a registry in it: then nothing is changed.
    """
    paths = HomePaths(settings.home)
    target = paths.root / REGISTRY_FILE
    _refuse_remains(paths, target)
    made = [folder for folder in (paths.root, *paths.root.parents) if not folder.exists()]
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".restore-", dir=paths.root) as name:
            folder = Path(name)
            index = _unpack(source, folder)
            _check(folder, index, source)
            there = replace(settings, home=folder, registry_url=f"sqlite:///{folder / REGISTRY_FILE}")
            again = _adopt(there, paths, now)
            _place(folder, paths, index)
            place_new(folder / REGISTRY_FILE, target)
    except FileExistsError as error:
        raise BadInput("a registry was made here in the meantime", where=str(target)) from error
    except OSError as error:
        raise RegistryUnusable(f"cannot be restored ({error.strerror or error})", where=str(paths.root)) from error
    finally:
        for one in made:
            if one.is_dir() and not any(one.iterdir()):
                one.rmdir()
    return again


def _refuse_remains(paths: HomePaths, target: Path) -> None:
    """A registry, its write-ahead log, or folders of jobs and runs: their numbers would be given again to others."""
    logs = [target.with_name(f"{REGISTRY_FILE}{suffix}") for suffix in ("-wal", "-shm")]
    for found in [path for path in (target, *logs) if path.exists()] + paths.numbered():
        what = "there is a registry here already" if found == target else "this is left of another registry"
        raise BadInput(what, where=str(found), hint="set PTQ_HOME to an empty folder")


def _named(copy: Path) -> list[tuple[str, str]]:
    """(kind, digest) of every folder that the rows of the copy name."""
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(copy)))
    with engine.connect() as connection:
        found = [("datasets", digest) for digest in connection.execute(sa.select(dataset_versions.c.digest)).scalars()]
        found += [("artifacts", digest) for digest in connection.execute(sa.select(artifacts.c.digest)).scalars()]
    engine.dispose()
    return sorted(set(found))


def _folder(paths: HomePaths, kind: str, digest: str) -> Path:
    return paths.dataset(digest) if kind == "datasets" else paths.artifact(digest)


def _add_bytes(file: tarfile.TarFile, name: str, data: bytes, now: float) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime = len(data), int(now)
    file.addfile(entry, BytesIO(data))


def _refused(source: Path, reason: str) -> BadInput:
    return BadInput(f"{reason}; nothing was restored", where=str(source))


def _unpack(source: Path, folder: Path) -> dict[str, Any]:
    seen = set()
    try:
        with tarfile.open(source, "r:") as file:  # not compressed: it cannot unpack to more than it is
            for entry in file:
                known = entry.name in {INDEX, REGISTRY_FILE} or _NAME.fullmatch(entry.name)
                if not known or not entry.isreg() or entry.name in seen or entry.issparse():
                    raise _refused(source, f"{entry.name!r} is no part of a backup")
                seen.add(entry.name)
                data = file.extractfile(entry)
                assert data is not None
                target = folder / entry.name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as out:
                    shutil.copyfileobj(data, out, 1 << 20)
                fsync_file(target)
        if not seen >= {INDEX, REGISTRY_FILE}:
            raise _refused(source, "not a backup of a registry")
        index = dict(read_json(folder / INDEX))
        folders, missing = ({(str(k), str(digest)) for k, digest in index[key]} for key in ("folders", "missing"))
        schema, number, sha256 = str(index["schema"]), index["format"], str(index["registry"])
    except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError) as error:
        raise _refused(source, f"not a backup, or a damaged one ({error})") from error
    if number != FORMAT or schema not in REVISIONS:
        raise BadInput(
            f"the backup is of a newer ptq (schema {schema}; this one knows {HEAD})",
            where=str(source),
            hint="install the newer ptq (`pip install --upgrade ptq`)",
        )
    if file_sha256(folder / REGISTRY_FILE) != sha256:
        raise _refused(source, "its database differs from its hash")
    return {"folders": folders, "missing": missing, "schema": schema}


def _check(folder: Path, index: Mapping[str, Any], source: Path) -> None:
    there = HomePaths(folder)
    if set(_named(folder / REGISTRY_FILE)) != index["folders"] | index["missing"]:
        raise _refused(source, "its index and its database do not agree")
    for kind, digest in sorted(index["folders"]):
        one = _folder(there, kind, digest)
        faults = manifest_faults(one)
        if not faults and kind == "artifacts" and digest_of(one) != digest:
            faults = ["its manifest is another one"]
        if faults:
            raise _refused(source, f"{kind}/{one.name[:12]}: {faults[0]}")


def _adopt(settings: Settings, paths: HomePaths, now: float) -> int:
    """Make the database one of this home (`paths`); how many jobs start again.

    The runs of the backup live no more, as far as this home goes: their jobs are queued again, their slots are free,
    and nobody is charged for the time since.
    """
    from orchestrator.registry.storage.engine import migrate

    backup = migrate(settings, now=now).backup
    if backup is not None:
        backup.unlink()
    registry = Registry.open(settings)
    with registry.write() as connection:
        again = _end_jobs(connection, now)
        for run_id in connection.execute(sa.select(runs.c.id).where(runs.c.ended_at.is_(None))).scalars().all():
            run_verbs.end_run(connection, run_id, exit_record=None, at=now, used_until=0.0)
        for lease in run_verbs.live_leases(connection):
            run_verbs.release(connection, lease.run_id, at=now, used_until=0.0)
        for held in reservations.unfinished(connection):
            if held.started_at is not None:
                reservations.end(connection, held.id, by="restore", at=now, up_since=now)
        connection.execute(sa.update(workers).where(workers.c.ended_at.is_(None)).values(ended_at=now))
        _move_folders(connection, paths)
    registry.close()
    for suffix in ("-wal", "-shm"):
        (settings.home / f"{REGISTRY_FILE}{suffix}").unlink(missing_ok=True)
    fsync_file(settings.home / REGISTRY_FILE)
    return again


def _end_jobs(connection: Connection, now: float) -> int:
    live = job_verbs.list_jobs(connection, states=sorted(LIVE))
    for job in live:
        if job.state is JobState.STOPPING:  # somebody had cancelled it
            to = Move(JobState.FINISHED, JobResult.CANCELLED, job.reason, "cancelled before the backup")
        else:
            lost = Reason.WORKER_LOST
            to = Move(JobState.QUEUED, reason=lost, message="restored from a backup", counted=False)
        job_verbs.move(connection, job.id, job.attempt, to, actor="restore", at=now)
    # Its events lie in the old home; a new attempt's file begins at its first byte. `ptq retry` may start others too.
    connection.execute(sa.update(jobs).where(_MAY_START).values(events_offset=0))
    connection.execute(sa.update(jobs).where(jobs.c.state != JobState.FINISHED.value).values(step=0))
    return sum(job.state is not JobState.STOPPING for job in live)


def _move_folders(connection: Connection, paths: HomePaths) -> None:
    """What may start, and every base, names folders of this home instead of the old one's."""
    stored = {paths.artifact(digest).name for digest in connection.execute(sa.select(artifacts.c.digest)).scalars()}
    may_start = sa.select(jobs.c.id, jobs.c.recipe, jobs.c.base).where(_MAY_START)
    for number, recipe, base in connection.execute(may_start).all():
        values = {
            "recipe": dict(with_stored_starts(recipe, paths)),
            "base": {**base, "path": _moved(str(base["path"]), paths, stored)},
        }
        connection.execute(sa.update(jobs).where(jobs.c.id == number).values(values))
    for number, path in connection.execute(sa.select(bases.c.id, bases.c.path)).all():
        connection.execute(sa.update(bases).where(bases.c.id == number).values(path=_moved(path, paths, stored)))


def _moved(path: str, paths: HomePaths, stored: Container[str]) -> str:
    """A base may lie in the store, where LM adaptation has left it. The old home may have had several names (links),
    so the folder is known by the digest of an artifact that came along."""
    found = _STORED.fullmatch(path)
    return str(paths.artifact(f"sha256:{found[1]}")) + found[2] if found and found[1] in stored else path


def _place(folder: Path, paths: HomePaths, index: Mapping[str, Any]) -> None:
    there = HomePaths(folder)
    for kind, digest in sorted(index["folders"]):
        one, final = _folder(there, kind, digest), _folder(paths, kind, digest)
        if final.is_dir() and not manifest_faults(final):
            continue
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            shutil.rmtree(final)
        one.rename(final)
    _sync(paths.store / kind for kind in ("datasets", "artifacts"))


def _sync(folders: Iterable[Path]) -> None:
    for folder in folders:
        if folder.is_dir():
            fsync_folder(folder)
