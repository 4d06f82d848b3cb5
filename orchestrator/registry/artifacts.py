"""Artifacts: what jobs left, under a digest in the store."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping

from orchestrator import manifest
from orchestrator.errors import BadData, BadInput, NotFinished, NotFound, StaleAttempt
from orchestrator.paths import ArtifactPaths, HomePaths, folder_written_atomically, is_touched, read_json
from orchestrator.registry.storage.engine import Registry
from orchestrator.registry.storage.tables import aliases, artifacts, jobs
from orchestrator.states import JobState

#: Kept in the folder only: the recipe stands with the job, and samples are for reading.
_BULK = ("recipe", "samples")


@dataclass(frozen=True)
class Artifact:
    id: int
    job_id: int | None  #: None: imported
    job_name: str  #: or the name under which it was imported
    attempt: int
    digest: str
    method: str
    summary: dict[str, Any]  #: artifact.json without its bulk
    bytes: int
    path: Path
    created_at: float
    origin: dict[str, Any] | None = None  #: of an imported one: {format, source, user, …}

    @property
    def ref(self) -> str:
        return f"a{self.id}"

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "ref": self.ref, "path": str(self.path)}


@dataclass(frozen=True)
class StagedArtifact:
    """An artifact that lies in the store, whole; no row names it yet."""

    digest: str
    method: str
    summary: dict[str, Any]
    bytes: int


def stage_artifact(paths: HomePaths, folder: Path) -> StagedArtifact:
    """Check a finished artifact folder and copy it into the store, whole or not at all. Before any transaction.

    Doing it again changes nothing. Raises BadData when the manifest does not hold.
    """
    faults = manifest.manifest_faults(folder)
    if faults:
        raise BadData(f"the artifact is not whole: {'; '.join(faults[:3])}", where=str(folder))
    try:
        facts = dict(read_json(ArtifactPaths(folder).facts))
        method = str(facts["method"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadData("not readable as an artifact", where=str(ArtifactPaths(folder).facts)) from error
    digest = manifest.digest_of(folder)
    final = paths.artifact(digest)
    if manifest.manifest_faults(final) or manifest.digest_of(final) != digest or not is_touched(final):
        with folder_written_atomically(final) as temporary:
            shutil.copytree(folder, temporary, dirs_exist_ok=True)
            os.utime(temporary)  # it is young, though its copy has the times of the original (see `care.gc`)
    size = sum(path.stat().st_size for path in final.rglob("*") if path.is_file())
    return StagedArtifact(digest, method, {name: value for name, value in facts.items() if name not in _BULK}, size)


def keep_import(connection: Connection, staged: StagedArtifact, origin: Mapping[str, Any], *, now: float) -> int:
    """The id of an artifact that no job here has left. The same bytes again give the row that is there."""
    known = connection.execute(sa.select(artifacts.c.id).where(artifacts.c.digest == staged.digest)).scalar()
    if known is not None:
        return int(known)
    values = {"digest": staged.digest, "method": staged.method, "summary": staged.summary, "bytes": staged.bytes}
    made = connection.execute(sa.insert(artifacts).values(attempt=0, origin=dict(origin), created_at=now, **values))
    return int(made.inserted_primary_key[0])  # type: ignore[index]


def keep_artifact(connection: Connection, staged: StagedArtifact, *, job_id: int, attempt: int, now: float) -> int:
    """The artifact's id. A job leaves one: the same digest again gives the same row, another one StaleAttempt."""
    known = connection.execute(sa.select(artifacts).where(artifacts.c.job_id == job_id)).mappings().one_or_none()
    if known is not None:
        if known["digest"] != staged.digest:
            raise StaleAttempt(f"job {job_id} left its artifact in attempt {known['attempt']} already")
        return int(known["id"])
    made = connection.execute(
        sa.insert(artifacts).values(
            job_id=job_id,
            attempt=attempt,
            digest=staged.digest,
            method=staged.method,
            summary=staged.summary,
            bytes=staged.bytes,
            created_at=now,
        )
    )
    return int(made.inserted_primary_key[0])  # type: ignore[index]


def get_artifact(registry: Registry, ref: str) -> Artifact:
    """`a12` (an artifact), `12` (what job 12 left), an alias, or the first 6 or more characters of a digest.

    Raises NotFound, NotFinished (the job may still leave one), BadInput (not a reference, or several match).
    """
    with registry.read() as connection:
        rows = list(connection.execute(_QUERY.where(_condition(ref))).mappings())
        state = None if rows or not ref.isdecimal() else _job_state(connection, int(ref))
    if len(rows) > 1 and len({row["digest"] for row in rows}) > 1:
        raise BadInput(
            f"{ref!r} fits {len(rows)} artifacts", hint="give more characters, or its id from `ptq artifact list`"
        )
    if rows:
        return _artifact(rows[0], registry.paths)
    if state is not None and state != JobState.FINISHED:
        raise NotFinished(f"job {ref} is {state}; it has left no artifact yet", hint=f"see `ptq status {ref}`")
    if state is not None:
        raise NotFound(f"job {ref} left no artifact", hint=f"see `ptq show {ref}`")
    raise NotFound(f"there is no artifact {ref!r}", hint="see `ptq artifact list`")


def list_artifacts(registry: Registry) -> list[Artifact]:
    with registry.read() as connection:
        rows = connection.execute(_QUERY.order_by(artifacts.c.id)).mappings().all()
    return [_artifact(row, registry.paths) for row in rows]


def verify(artifact: Artifact) -> list[str]:
    """What does not hold. Empty when every file is as it was left."""
    faults = manifest.manifest_faults(artifact.path)
    if not faults and manifest.digest_of(artifact.path) != artifact.digest:
        faults = [f"{artifact.path}: the manifest itself was changed"]
    return faults


_QUERY = sa.select(artifacts, jobs.c.name.label("job_name")).outerjoin(jobs)


def _condition(ref: str) -> sa.ColumnElement[bool]:
    if "@" in ref:
        return artifacts.c.id.in_(sa.select(aliases.c.artifact_id).where(aliases.c.name == ref))
    if re.fullmatch(r"a[0-9]{1,9}", ref):
        # `a12` could also begin a digest; ids are what `list` shows, so they win, and digests need 6 characters.
        return artifacts.c.id == int(ref[1:])
    if re.fullmatch(r"[0-9]{1,9}", ref):
        return artifacts.c.job_id == int(ref)
    prefix = re.fullmatch(r"(?:sha256:)?([0-9a-f]{6,64})", ref)
    if prefix is None:
        raise BadInput(
            f"{ref!r} is not an artifact",
            hint="write its id (a12), its job (12), an alias (sst2@best) or the start of its digest",
        )
    return artifacts.c.digest.startswith(f"sha256:{prefix[1]}")


def _job_state(connection: Connection, job_id: int) -> str | None:
    return connection.execute(sa.select(jobs.c.state).where(jobs.c.id == job_id)).scalar()


def _artifact(row: RowMapping, paths: HomePaths) -> Artifact:
    return Artifact(
        id=row["id"],
        job_id=row["job_id"],
        job_name=row["job_name"] or str(row["summary"].get("name") or "imported"),
        attempt=row["attempt"],
        digest=row["digest"],
        method=row["method"],
        summary=dict(row["summary"]),
        bytes=row["bytes"],
        path=paths.artifact(row["digest"]),
        created_at=row["created_at"],
        origin=row["origin"],
    )
