"""Who may do what in a home that several accounts share. Accounts are told apart by their numbers, never by names."""

from __future__ import annotations

import os
from collections.abc import Iterable

from orchestrator import sharing
from orchestrator.dispatch.running.processes import boot_id
from orchestrator.errors import NotAllowed
from orchestrator.paths import HomePaths
from orchestrator.registry.jobs import Job
from orchestrator.registry.reservations import Reservation
from orchestrator.registry.storage.engine import Registry

ROOT = 0


def check_may_change(registry: Registry, found: Iterable[Job], verb: str) -> None:
    """A job is its submitter's: others may not `verb` it, but for root and the account that made the home.

    Raises NotAllowed, which names the first such job. A job from before accounts were kept is anybody's.
    """
    uid = registry.settings.uid
    if uid in {ROOT, owner_of(registry.paths)}:
        return
    for job in found:
        if job.uid not in {None, uid}:
            raise NotAllowed(
                f"job {job.id} is {job.user}'s; you are {registry.settings.user}", hint=f"ask {job.user} to {verb} it"
            )


def check_may_release(registry: Registry, found: Iterable[Reservation]) -> None:
    """As with jobs."""
    uid = registry.settings.uid
    for one in found:
        if uid not in {ROOT, owner_of(registry.paths), one.uid}:
            raise NotAllowed(
                f"reservation r{one.id} is {one.user}'s; you are {registry.settings.user}",
                hint=f"ask {one.user} to release it",
            )


def check_may_work(registry: Registry) -> None:
    """In a shared home one account works, the one that made it: what its runs leave must be readable to the next.

    Raises NotAllowed, and NoProc where ptq could not look after what it starts.
    """
    boot_id()
    folder = registry.paths.jobs
    if sharing.is_shared(registry.paths.root) and folder.exists() and not os.access(folder, os.W_OK):
        worker = sharing.account_name(folder.stat().st_uid)
        raise NotAllowed(
            f"the jobs of this home are run by {worker}; you are {registry.settings.user}", where=str(folder),
            hint=f"`ptq submit` queues a job; ask {worker} to start `ptq worker` when none is there",
        )  # fmt: skip


def owner_of(paths: HomePaths) -> int | None:
    try:
        return paths.root.stat().st_uid
    except OSError:
        return None
