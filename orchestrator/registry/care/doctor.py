"""Is the registry whole? Every row against the rows and the files that it names, every file against its hash."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Connection

from orchestrator import manifest
from orchestrator.recipe.named import changed_files
from orchestrator.registry import artifacts, bases, datasets
from orchestrator.registry import jobs as job_verbs
from orchestrator.registry.care import gc
from orchestrator.registry.lineage import warm_starts
from orchestrator.registry.metrics import rebuild_latest, stale_latest
from orchestrator.registry.storage.engine import Registry
from orchestrator.registry.storage.tables import artifacts as artifact_table
from orchestrator.registry.storage.tables import jobs
from orchestrator.states import JobResult, JobState

_OLD = re.compile(r"\.([0-9a-f]{64})\.[0-9a-f]+\.old")

Advance = Callable[[int, int | None, str], None]


@dataclass(frozen=True)
class Finding:
    what: str
    where: str
    hint: str = ""
    fixable: bool = False
    fixed: bool = False
    fault: bool = True  #: False: worth knowing, but nothing is wrong


def examine(
    registry: Registry,
    *,
    now: float,
    hashes: bool = True,
    fix: bool = False,
    advance: Advance = lambda _done, _total, _text: None,
) -> list[Finding]:
    """Everything that does not hold. `fix` mends what can be mended without a choice: nothing that is named goes."""
    found = list(_database(registry))
    found += list(_interrupted(registry, fix))  # first: it brings missing folders back
    found += list(_stored(registry, hashes, advance))
    found += list(_bases(registry, hashes))
    found += list(_jobs(registry))
    found += list(_latest(registry, fix))
    found += list(_garbage(registry, now))
    return found + list(_set_aside(registry))


def _database(registry: Registry) -> Iterator[Finding]:
    with registry.read() as connection:
        if connection.dialect.name != "sqlite":
            return
        for (text,) in connection.exec_driver_sql("PRAGMA integrity_check(20)"):
            if text != "ok":
                yield Finding(
                    f"the database is damaged: {text}", registry.where, "restore a backup: `ptq restore FILE`"
                )
        for table, row, parent, _ in connection.exec_driver_sql("PRAGMA foreign_key_check"):
            hint = "restore a backup: `ptq restore FILE`"
            yield Finding(f"row {row} of {table} names a row of {parent} that is not there", registry.where, hint)


def _interrupted(registry: Registry, fix: bool) -> Iterator[Finding]:
    """A folder that was moved aside to make room for its successor, which never came."""
    for kind in ("datasets", "artifacts"):
        for old in sorted((registry.paths.store / kind).glob(".*.old")):
            match = _OLD.fullmatch(old.name)
            final = None if match is None else old.with_name(match[1])
            if final is None or final.exists() or manifest.manifest_faults(old):
                continue
            if fix:
                old.rename(final)
            yield Finding(
                "was moved aside by a command that was killed", str(final), fixable=True, fixed=fix, hint=_FIX
            )


def _stored(registry: Registry, hashes: bool, advance: Advance) -> Iterator[Finding]:
    versions, prompts = datasets.list_versions(registry), artifacts.list_artifacts(registry)
    total = len(versions) + len(prompts)
    for number, version in enumerate(versions):
        advance(number, total, version.ref)
        hint = f"add the same rows again under the name {version.name}, or restore a backup"
        faults = _missing(version.path) if not hashes else datasets.verify(version)
        for fault in faults:
            yield Finding(f"dataset {version.ref}: {fault}", str(version.path), hint)
    for number, artifact in enumerate(prompts, start=len(versions)):
        advance(number, total, artifact.ref)
        faults = _missing(artifact.path) if not hashes else artifacts.verify(artifact)
        for fault in faults:
            yield Finding(f"artifact {artifact.ref}: {fault}", str(artifact.path), _artifact_hint(registry, artifact))


def _missing(path: Path) -> list[str]:
    return [] if (path / manifest.NAME).is_file() else ["missing"]


def _artifact_hint(registry: Registry, artifact: artifacts.Artifact) -> str:
    if artifact.job_id is None:
        return "import it again, or restore a backup"
    copy = registry.paths.job(artifact.job_id).artifact(artifact.attempt)
    if not manifest.manifest_faults(copy) and manifest.digest_of(copy) == artifact.digest:
        return f"a whole copy lies in {copy}"
    return f"restore a backup, or train it again: `ptq reproduce {artifact.job_id}`"


def _bases(registry: Registry, hashes: bool) -> Iterator[Finding]:
    for base in bases.list_bases(registry):
        hint = f"put it back as it was; jobs on {base.name} cannot start without it"
        if not base.path.is_dir():
            yield Finding(f"base {base.name}: its folder is gone", str(base.path), hint)
        elif hashes:
            for fault in bases.faults(base):
                yield Finding(f"base {base.name}: {fault}", str(base.path), hint)


def _jobs(registry: Registry) -> Iterator[Finding]:
    with registry.read() as connection:
        for job in _without_artifact(connection):
            hint = f"train it again: `ptq reproduce {job}`"
            yield Finding(f"job {job} succeeded, but has no artifact", f"job {job}", hint)
        unfinished = [state for state in JobState if state is not JobState.FINISHED]
        waiting = job_verbs.list_jobs(connection, states=unfinished)
    for one in waiting:
        for told in changed_files(one.recipe):
            hint = f"put it back as it was, or `ptq cancel {one.id}` and submit again"
            yield Finding(f"job {one.id}: {told} since it was submitted", f"job {one.id}", hint)
        for digest in warm_starts(one.recipe):
            folder = registry.paths.artifact(digest)
            if not folder.is_dir():
                hint = f"`ptq cancel {one.id}`, or bring the artifact back"
                yield Finding(f"job {one.id} starts from an artifact that is gone", str(folder), hint)


def _without_artifact(connection: Connection) -> Sequence[int]:
    query = (
        sa.select(jobs.c.id)
        .outerjoin(artifact_table, artifact_table.c.job_id == jobs.c.id)
        .where(jobs.c.result == JobResult.SUCCEEDED.value, artifact_table.c.id.is_(None))
        .order_by(jobs.c.id)
    )
    return connection.execute(query).scalars().all()


def _latest(registry: Registry, fix: bool) -> Iterator[Finding]:
    with registry.read() as connection:
        count = stale_latest(connection)
    if not count:
        return
    if fix:
        with registry.write() as connection:
            rebuild_latest(connection)
    what = f"the newest values of {count:,} metrics are not those of their points"
    yield Finding(what, registry.where, _FIX, fixable=True, fixed=fix)


def _garbage(registry: Registry, now: float) -> Iterator[Finding]:
    for one in gc.find_garbage(registry, now=now):
        yield Finding(f"{one.why} ({one.bytes:,} bytes)", str(one.path), "`ptq gc` removes it", fault=False)


def _set_aside(registry: Registry) -> Iterator[Finding]:
    for folder in registry.paths.set_aside():
        what = "was another registry's, or of a later time of this one; nobody reads it"
        yield Finding(what, str(folder), "look at it, then remove it", fault=False)


_FIX = "`ptq doctor --fix` mends it"
