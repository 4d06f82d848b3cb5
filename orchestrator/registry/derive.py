"""Derived versions, and what differs between two versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from orchestrator.data import differences
from orchestrator.data.derive import Parent, derived
from orchestrator.data.staging import stage_rows
from orchestrator.registry.datasets import DatasetVersion, Derived, Notes, add_version
from orchestrator.registry.storage.engine import Registry


def derive(
    registry: Registry,
    parent: DatasetVersion,
    name: str,
    operation: Mapping[str, Any],
    notes: Notes,
    *,
    user: str,
    now: float,
) -> DatasetVersion:
    """Make the version; parent and operation are kept with it. BadInput or BadData: nothing was written."""
    fields, rows = derived(Parent(parent.path, parent.fields, parent.splits), operation)
    source = {"derived": {"from": parent.ref, "digest": parent.digest, "operation": dict(operation)}}
    with stage_rows(registry.paths, rows, fields, source) as staged:
        kept = Derived(parent.id, operation)
        return add_version(registry, name, staged, user=user, now=now, notes=notes, derived=kept)


def difference(old: DatasetVersion, new: DatasetVersion) -> dict[str, Any]:
    """Fields, splits and rows that came and went; rows by the fields and splits that both have."""
    fields = [name for name in old.fields if name in new.fields]
    splits = [split for split in old.splits if split in new.splits] if fields else []
    return {
        "old": old.ref,
        "new": new.ref,
        "fields": _came_and_went(old.fields, new.fields),
        "splits": _came_and_went(list(old.splits), list(new.splits)),
        "rows": [asdict(differences.split_difference(old.path, new.path, split, fields)) for split in splits],
    }


def _came_and_went(old: Any, new: Any) -> dict[str, list[str]]:
    return {"removed": [one for one in old if one not in new], "added": [one for one in new if one not in old]}
