"""From files to a complete dataset version in a staging folder of the store. Bad input leaves nothing behind."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator import manifest
from orchestrator.data import layout, store
from orchestrator.data.columns import Pending
from orchestrator.data.gather import Gatherer, refuse_unreadable
from orchestrator.data.readers import check_options
from orchestrator.data.rows import Advance, ReadOptions
from orchestrator.data.splits import SplitPlan, assign
from orchestrator.data.statistics import Statistics
from orchestrator.errors import BadData, RegistryUnusable
from orchestrator.paths import HomePaths, fsync_file, fsync_folder

#: A staging folder that nobody holds is removed when it is this old: its maker was killed.
_ABANDONED_SECONDS = 60.0
_PREFIX = ".staging-"


@dataclass(frozen=True)
class Staged:
    """A complete dataset version that no registry knows yet."""

    folder: Path
    digest: str
    fields: tuple[str, ...]
    splits: dict[str, int]  #: {split: rows}
    bad_rows: int
    source: dict[str, Any]
    statistics: dict[str, Any] | None = None  #: see `data.statistics`; None: not counted (from a bundle)

    @property
    def duplicates(self) -> int:
        """Rows that repeat an earlier row of their split."""
        return sum((self.statistics or {}).get("duplicates", {}).values())

    @property
    def shared(self) -> int:
        """Rows that repeat a row of an earlier split."""
        return sum(one["rows"] for one in (self.statistics or {}).get("shared", []))


@contextlib.contextmanager
def stage(
    paths: HomePaths,
    files: Mapping[str, Sequence[Path]],
    options: ReadOptions,
    *,
    plan: SplitPlan | None = None,
    labels: Mapping[Path, str] | None = None,
    source: Mapping[str, Any] | None = None,
    advance: Advance = lambda _bytes: None,
) -> Iterator[Staged]:
    """Read every row of `files` (by split; with a `plan` all of them are divided anew) and yield the staged version.

    `registry.datasets.add_version` moves it into the store. What was not moved when the `with` ends is removed,
    with every folder that was made on the way. `source` is kept with the version (default: files and options).
    Raises NotFound (no such file), BadInput (options), BadData (bad rows, no rows), RegistryUnusable (disk).
    """
    for path in (path for group in files.values() for path in group):
        refuse_unreadable(path)
        check_options(path, options)
    with staging_folder(paths) as folder, _disk_errors(folder):
        origin = _origin(files, options, plan) if source is None else dict(source)
        with (folder / layout.BAD_ROWS).open("w", encoding="utf-8") as aside:
            gatherer = Gatherer(files, options, labels or {}, advance, aside)
            builder = _build(folder, gatherer, plan)
        yield _complete(folder, gatherer, builder, origin)


@contextlib.contextmanager
def stage_rows(
    paths: HomePaths, rows: Iterable[tuple[str, tuple[str, ...]]], fields: Sequence[str], source: Mapping[str, Any]
) -> Iterator[Staged]:
    """Stage rows that are there already as texts: (split, values in the order of `fields`), split by split.

    Raises BadData when there are none.
    """
    with staging_folder(paths) as folder, _disk_errors(folder):
        builder = _Builder(folder)
        with builder:
            for split, batch in _batched(rows, fields):
                builder.add(split, batch)
        if not builder.writers:
            raise BadData("no rows are left; nothing was written")
        yield _completed(folder, tuple(fields), builder, 0, dict(source))


class _Builder:
    """Writes the splits, and counts what is in them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.statistics = Statistics(folder)
        self.writers: dict[str, store.SplitWriter] = {}

    def add(self, split: str, batch: pa.RecordBatch) -> None:
        if split not in self.writers:
            self.writers[split] = store.SplitWriter(layout.split_file(self._folder, split), batch.schema.names)
        encoded = store.encoded_rows(batch)
        self.writers[split].add_batch(batch, encoded)
        self.statistics.add_batch(split, batch, encoded)

    def __enter__(self) -> _Builder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for writer in self.writers.values():
            writer.close()
        if kind is not None:
            self.statistics.close()


def _build(folder: Path, gatherer: Gatherer, plan: SplitPlan | None) -> _Builder:
    builder = _Builder(folder)
    with builder:
        if plan is None:
            for split in gatherer.files:
                for batch in gatherer.batches(split):
                    builder.add(split, batch)
            gatherer.refuse_faults()
            for split, paths in gatherer.files.items():
                if split not in builder.writers:
                    raise _empty(split, paths, gatherer)
        else:
            _divide(folder, gatherer, plan, builder)
    return builder


def _divide(folder: Path, gatherer: Gatherer, plan: SplitPlan, builder: _Builder) -> None:
    """Two passes, because the number of rows decides where each goes: all into one file, from it into the splits."""
    undivided = f"{_PREFIX}all"
    writer: store.SplitWriter | None = None
    try:
        for split in gatherer.files:
            for batch in gatherer.batches(split):
                writer = writer or store.SplitWriter(layout.split_file(folder, undivided), gatherer.fields)
                writer.add_batch(batch)
    finally:
        if writer is not None:
            writer.close()
    gatherer.refuse_faults()
    if writer is None:
        raise _empty("", [path for group in gatherer.files.values() for path in group], gatherer)
    assigned = np.frombuffer(assign(writer.rows, plan), np.uint8)
    for index, split in enumerate(plan.names):
        start = 0
        for batch in store.read_batches(folder, undivided):
            mine = assigned[start : start + batch.num_rows] == index
            start += batch.num_rows
            if mine.any():
                builder.add(split, batch.filter(pa.array(mine)))
    layout.split_file(folder, undivided).unlink()


def _batched(
    rows: Iterable[tuple[str, tuple[str, ...]]], fields: Sequence[str]
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Rows of a split that come one after the other, together."""
    pending, current = Pending(), ""
    for split, values in rows:
        if split != current or pending.full:
            yield from ((current, batch) for batch in pending.flush(fields))
            current = split
        pending.add(values)
    yield from ((current, batch) for batch in pending.flush(fields))


def _empty(split: str, paths: Sequence[Path], gatherer: Gatherer) -> BadData:
    what = f"the split {split!r} has no rows" if len(gatherer.files) > 1 else "there are no rows"
    if gatherer.fault_count:
        what += f" left: {gatherer.fault_count:,} were bad, the first at {gatherer.faults[0]}"
    return BadData(f"{what}; nothing was written", where=", ".join(map(str, paths)))


def _complete(folder: Path, gatherer: Gatherer, builder: _Builder, origin: dict[str, Any]) -> Staged:
    if not gatherer.fault_count:
        (folder / layout.BAD_ROWS).unlink()
    return _completed(folder, gatherer.fields, builder, gatherer.fault_count, origin)


def _completed(folder: Path, fields: tuple[str, ...], builder: _Builder, bad: int, origin: dict[str, Any]) -> Staged:
    splits = {split: writer.rows for split, writer in builder.writers.items()}
    parts = [(split, writer.rows, writer.digest) for split, writer in builder.writers.items()]
    digest = store.dataset_digest(fields, parts)
    statistics = builder.statistics.result(fields)
    builder.statistics.close()
    layout.write_version(folder, digest, fields, splits)
    manifest.write_manifest(folder)
    for path in folder.iterdir():
        fsync_file(path)
    fsync_folder(folder)
    return Staged(folder, digest, fields, splits, bad, origin, statistics)


def _origin(files: Mapping[str, Sequence[Path]], options: ReadOptions, plan: SplitPlan | None) -> dict[str, Any]:
    given = {name: value for name, value in vars(options).items() if value not in (None, False, ())}
    return {
        "files": {split: [str(path.absolute()) for path in paths] for split, paths in files.items()},
        "options": given,
        "split": None if plan is None else {"fractions": list(plan.fractions), "seed": plan.seed},
    }


@contextlib.contextmanager
def staging_folder(paths: HomePaths) -> Iterator[Path]:
    """A folder of our own in the store, held by a lock; it and every folder made for it are gone afterwards."""
    made: list[Path] = []
    folder, lock = paths.store / f"{_PREFIX}{uuid.uuid4().hex[:12]}", None
    try:  # from before the first folder: Ctrl-C may come between any two lines
        try:
            made += _missing(paths.store)
            paths.store.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(paths.store)
            folder.mkdir()
            lock = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise _unwritable(paths.store, error) from error
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)
        _remove_empty(made)


def _missing(folder: Path) -> list[Path]:
    """It and those above it that do not exist yet, the innermost first."""
    return list(itertools.takewhile(lambda one: not one.exists(), (folder, *folder.parents)))


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # not empty: a version lies in it now, or another process uses it
            folder.rmdir()


def _remove_abandoned(folder: Path) -> None:
    for left in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime < _ABANDONED_SECONDS:
                continue
            lock = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its maker lives
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise _unwritable(folder.parent, error) from error


def _unwritable(folder: Path, error: Exception) -> RegistryUnusable:
    reason = getattr(error, "strerror", None) or str(error)
    return RegistryUnusable(
        f"the store cannot be written ({reason}); nothing was added",
        where=str(folder),
        hint="make room (`df -h`), or set PTQ_HOME to a folder where you may write",
    )
