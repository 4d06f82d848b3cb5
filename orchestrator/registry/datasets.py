"""Dataset versions: immutable rows under a digest in the store, and who named them when in the registry."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping

from orchestrator import manifest
from orchestrator.data import layout
from orchestrator.errors import BadData, BadInput, NotFound, did_you_mean
from orchestrator.paths import HomePaths, fsync_folder, is_touched
from orchestrator.registry.names import check_name
from orchestrator.registry.storage.engine import Registry
from orchestrator.registry.storage.tables import dataset_versions, datasets, derivations

if TYPE_CHECKING:
    from orchestrator.data.staging import Staged


@dataclass(frozen=True)
class DatasetVersion:
    id: int  #: of the version, in `dataset_versions`
    name: str
    version: int
    digest: str
    fields: tuple[str, ...]
    splits: dict[str, int]  #: {split: rows}
    bad_rows: int  #: set aside with --skip-bad
    source: dict[str, Any]
    path: Path  #: folder in the store
    created_at: float
    created_by: str
    statistics: dict[str, Any] | None = None  #: see `data.statistics`; None: not counted
    licence: str | None = None
    origin: str | None = None  #: where the rows were published, or who made them
    tags: tuple[str, ...] = ()

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"

    def as_json(self) -> dict[str, Any]:
        lists = {"fields": list(self.fields), "tags": list(self.tags)}
        return {**vars(self), "ref": self.ref, "path": str(self.path), **lists}


@dataclass(frozen=True)
class Notes:
    """What people say of a version. It may change; the rows never do."""

    licence: str | None = None
    origin: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Derived:
    """From which version, and how."""

    parent_id: int
    operation: Mapping[str, Any]


def add_version(
    registry: Registry,
    name: str,
    staged: Staged,
    *,
    user: str,
    now: float,
    notes: Notes = Notes(),
    derived: Derived | None = None,
) -> DatasetVersion:
    """Move the staged rows into the store and name them. The same rows again give the version that is there already.

    Raises BadInput for a name that cannot be one.
    """
    check_name(name, "dataset")
    check_tags(notes.tags)
    registry.create()
    _place(registry.paths, staged)
    with registry.write() as connection:
        dataset_id = connection.execute(sa.select(datasets.c.id).where(datasets.c.name == name)).scalar()
        if dataset_id is None:
            made = connection.execute(sa.insert(datasets).values(name=name, created_at=now))
            dataset_id = made.inserted_primary_key[0]  # type: ignore[index]
        known = _select(
            connection, dataset_versions.c.dataset_id == dataset_id, dataset_versions.c.digest == staged.digest
        )
        if not known:
            _insert(connection, dataset_id, staged, user, now, notes)
            known = _select(
                connection, dataset_versions.c.dataset_id == dataset_id, dataset_versions.c.digest == staged.digest
            )
        if derived is not None:
            _keep_derivation(connection, known[0]["id"], derived)
    return _version(known[0], registry.paths)


def annotate(registry: Registry, version: DatasetVersion, notes: Notes) -> DatasetVersion:
    """Replace what is said of a version. Raises BadInput for tags that cannot be any."""
    check_tags(notes.tags)
    values = {"licence": notes.licence, "origin": notes.origin, "tags": list(notes.tags)}
    with registry.write() as connection:
        connection.execute(sa.update(dataset_versions).where(dataset_versions.c.id == version.id).values(values))
    return get_version(registry, version.ref)


def keep_tokens(registry: Registry, version: DatasetVersion, base: str, counted: Mapping[str, Any]) -> DatasetVersion:
    """Keep how many tokens of a base's tokenizer the version has."""
    with registry.write() as connection:
        row = sa.select(dataset_versions.c.statistics).where(dataset_versions.c.id == version.id)
        known = dict(connection.execute(row).scalar() or {})
        known["tokens"] = {**known.get("tokens", {}), base: dict(counted)}
        mine = dataset_versions.c.id == version.id
        connection.execute(sa.update(dataset_versions).where(mine).values(statistics=known))
    return get_version(registry, version.ref)


def check_tags(tags: Sequence[str]) -> None:
    for tag in tags:
        check_name(tag, "tag")


def _keep_derivation(connection: Connection, child: int, derived: Derived) -> None:
    """Rows that another operation has made already are the same rows: each parent is kept once."""
    if child == derived.parent_id:
        return
    same = (derivations.c.child_id == child, derivations.c.parent_id == derived.parent_id)
    if connection.execute(sa.select(derivations.c.child_id).where(*same)).first() is None:
        row = {"child_id": child, "parent_id": derived.parent_id, "operation": dict(derived.operation)}
        connection.execute(sa.insert(derivations).values(row))


def get_version(registry: Registry, ref: str) -> DatasetVersion:
    """`NAME` (its newest version) or `NAME@VERSION`. Raises NotFound and BadInput."""
    match = re.fullmatch(r"([^@]+)(?:@([1-9][0-9]{0,8}))?", ref)
    if not match:
        raise BadInput(f"{ref!r} is not a dataset", hint="write NAME or NAME@VERSION, e.g. e2e@1")
    name, number = match[1], match[2]
    with registry.read() as connection:
        rows = _select(connection, datasets.c.name == name)
        names = list(connection.execute(sa.select(datasets.c.name)).scalars()) if not rows else []
    if not rows:
        raise NotFound(f"there is no dataset {name!r}", hint=did_you_mean(name, names, "see `ptq dataset list`"))
    if number is None:
        return _version(rows[-1], registry.paths)
    for row in rows:
        if row["version"] == int(number):
            return _version(row, registry.paths)
    raise NotFound(f"{name} has no version {number}; its newest is {name}@{rows[-1]['version']}")


def list_versions(registry: Registry, name: str | None = None) -> list[DatasetVersion]:
    """All versions by name and number."""
    with registry.read() as connection:
        rows = _select(connection, *([] if name is None else [datasets.c.name == name]))
    return [_version(row, registry.paths) for row in rows]


def verify(version: DatasetVersion) -> list[str]:
    """Read every file and every row again; what does not hold. Empty when the version is whole."""
    if not version.path.is_dir():
        return [f"{version.path}: missing"]
    faults = manifest.manifest_faults(version.path)
    faults += [
        f"{split}.arrow: missing" for split in version.splits if not layout.split_file(version.path, split).is_file()
    ]
    if faults:
        return faults
    # Imported here: pyarrow costs 100 ms, and submitting a job only needs a version's name.
    from orchestrator.data import store

    try:
        digest = store.digest_of(version.path, version.fields, version.splits)
    except store.DAMAGE as error:
        return [f"the rows cannot be read: {error}"]
    return [] if digest == version.digest else [f"the rows have the digest {digest}, not {version.digest}"]


def distinct_values(version: DatasetVersion, split: str, fields: Sequence[str]) -> dict[tuple[str, ...], int]:
    """Every combination of values of the fields in a split, with the number of its first row. Raises BadData."""
    # Imported here: pyarrow costs 100 ms, and only classification asks.
    from orchestrator.data import distinct, store

    if not fields:
        return {(): 1}
    try:
        return distinct.distinct(version.path, split, fields)
    except store.DAMAGE as error:
        raise _unreadable(version, split, error) from error


def values_of(version: DatasetVersion, split: str, fields: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The fields' values of every row of a split, in order. Raises BadData."""
    # Imported here: pyarrow costs 100 ms, and only tasks ask whose rows may not suit them.
    from orchestrator.data import store

    try:
        yield from store.read_columns(version.path, split, fields)
    except store.DAMAGE as error:
        raise _unreadable(version, split, error) from error


def _unreadable(version: DatasetVersion, split: str, error: Exception) -> BadData:
    return BadData(
        f"the rows of {version.ref} cannot be read ({error})",
        where=str(layout.split_file(version.path, split)),
        hint=f"see `ptq dataset verify {version.ref}`",
    )


def _place(paths: HomePaths, staged: Staged) -> None:
    """Rename the staged folder to its digest. A whole one that is there stays, unless ours knows more bad rows."""
    final = paths.dataset(staged.digest)
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.is_dir() and not manifest.manifest_faults(final):
        ours, theirs = _lines(staged.folder), _lines(final)
        if set(ours) <= set(theirs) and is_touched(final):
            return
        merged = theirs + [line for line in ours if line not in set(theirs)]
        (staged.folder / layout.BAD_ROWS).write_text("".join(f"{line}\n" for line in merged), encoding="utf-8")
        manifest.write_manifest(staged.folder)
    old = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.old")
    if final.exists():
        final.rename(old)
    try:
        staged.folder.rename(final)
    except OSError:
        if not final.is_dir():  # otherwise another process placed the same rows a moment ago
            raise
    shutil.rmtree(old, ignore_errors=True)
    fsync_folder(final.parent)


def _lines(folder: Path) -> list[str]:
    return [json.dumps(row) for row in layout.bad_rows(folder)]


def _insert(connection: Connection, dataset_id: int, staged: Staged, user: str, now: float, notes: Notes) -> None:
    newest = connection.execute(
        sa.select(sa.func.max(dataset_versions.c.version)).where(dataset_versions.c.dataset_id == dataset_id)
    ).scalar()
    connection.execute(
        sa.insert(dataset_versions).values(
            dataset_id=dataset_id,
            version=(newest or 0) + 1,
            digest=staged.digest,
            fields=list(staged.fields),
            splits=staged.splits,
            bad_rows=staged.bad_rows,
            source=staged.source,
            created_at=now,
            created_by=user,
            statistics=staged.statistics,
            licence=notes.licence,
            origin=notes.origin,
            tags=list(notes.tags),
        )
    )


def _select(connection: Connection, *where: sa.ColumnElement[bool]) -> list[RowMapping]:
    query = sa.select(dataset_versions, datasets.c.name).join(datasets).where(*where)
    return list(connection.execute(query.order_by(datasets.c.name, dataset_versions.c.version)).mappings())


def _version(row: RowMapping, paths: HomePaths) -> DatasetVersion:
    return DatasetVersion(
        id=row["id"],
        name=row["name"],
        version=row["version"],
        digest=row["digest"],
        fields=tuple(row["fields"]),
        splits=dict(row["splits"]),
        bad_rows=row["bad_rows"],
        source=dict(row["source"]),
        path=paths.dataset(row["digest"]),
        created_at=row["created_at"],
        created_by=row["created_by"],
        statistics=row["statistics"],
        licence=row["licence"],
        origin=row["origin"],
        tags=tuple(row["tags"] or ()),
    )


def row_bytes(folder: Path, rows: int) -> float | None:
    """Bytes of a usual row to train on, by the size of its file; None where that is not there."""
    try:
        size = layout.split_file(folder, "train").stat().st_size
    except OSError:
        return None
    return max(0, size - _ARROW_BYTES) / rows if rows else None


_ARROW_BYTES = 800  #: of a file's own: schema and footer
