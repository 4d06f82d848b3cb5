"""What a run's folder says of the run: who supervises it, and until when it lived."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from orchestrator.dispatch.running import processes
from orchestrator.paths import RunPaths, read_json
from orchestrator.registry.runs import Run


def others(paths: RunPaths) -> int | None:
    """The account whose run it is, where that is another and its processes cannot be seen from here."""
    try:
        uid = int(read_json(paths.supervisor).get("uid", os.getuid()))
    except (OSError, ValueError):
        return None
    return None if os.getuid() in {0, uid} or supervised(paths) else uid


def supervised(paths: RunPaths) -> bool:
    try:
        who: Mapping[str, Any] = read_json(paths.supervisor)
    except FileNotFoundError:
        return False
    return who["boot_id"] == processes.boot_id() and processes.alive(who["pid"], who["started"])


def ended_at(record: Mapping[str, Any]) -> float | None:
    try:
        return float(record["ended_at"])
    except (KeyError, TypeError, ValueError):
        return None


def last_sign(run: Run, paths: RunPaths) -> float:
    """When a run that left no record was last known to live."""
    try:
        return paths.heartbeat.stat().st_mtime
    except OSError:
        return run.started_at
