"""Tell people that a job has finished: a command of theirs, a webhook, or both (queue.toml, `[notify]`).

Everybody is told at least once and in order, over the worker's own restarts: how far it has come is kept in the
registry. Each telling is a process of its own (`telling`), so that a hook that hangs holds nobody up; what it says
goes to the worker's log.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.registry import controls, history, jobs
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import Policy

PATIENCE = 150.0  #: seconds that a telling may take; hook and webhook have 60 each (see `telling`)
AT_ONCE = 8  #: tellings that may be under way
_BATCH = 50


class Notifier:
    def __init__(self, registry: Registry, log: Callable[[str], None]) -> None:
        self._registry, self._log = registry, log
        self._told: int | None = None
        self._under_way: list[tuple[int, subprocess.Popen[bytes], float]] = []

    @property
    def busy(self) -> bool:
        return bool(self._under_way)

    def tell(self, policy: Policy) -> None:
        """One round: let go of tellings that have ended, and start those that are due."""
        self._reap()
        if not policy.notify_command and policy.notify_webhook is None:
            return
        while len(self._under_way) < AT_ONCE and (due := self._due()):
            for event, facts in due[: AT_ONCE - len(self._under_way)]:
                self._start(facts, policy)
                self._told = event
            with self._registry.write() as conn:
                controls.put(conn, controls.NOTIFIED, self._told, by="worker", at=time.time())

    def _due(self) -> list[tuple[int, dict[str, Any]]]:
        if self._told is None:
            self._told = self._first()
        with self._registry.read() as conn:
            found = jobs.finished_since(conn, self._told, limit=_BATCH)
        return [(event, facts_of(job)) for event, job in found]

    def _first(self) -> int:
        """Who turns notifications on does not want to hear of all that ever happened, but of all from then on."""
        with self._registry.write() as conn:
            if (known := controls.get(conn, controls.NOTIFIED)) is not None:
                return int(known.value)
            newest = history.last_event(conn)
            controls.put(conn, controls.NOTIFIED, newest, by="worker", at=time.time())
            return newest

    def _start(self, facts: Mapping[str, Any], policy: Policy) -> None:
        order = {"facts": facts, "command": list(policy.notify_command), "webhook": policy.notify_webhook}
        command = [sys.executable, "-P", "-m", "orchestrator.dispatch.telling"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        assert process.stdin is not None
        process.stdin.write(json.dumps(order).encode())  # less than a pipe holds: it does not block
        process.stdin.close()
        self._under_way.append((int(facts["id"]), process, time.monotonic()))

    def _reap(self) -> None:
        left = []
        for job, process, began in self._under_way:
            if process.poll() is None and time.monotonic() - began < PATIENCE:
                left.append((job, process, began))
                continue
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.returncode:
                self._log(f"worker: nobody could be told that job {job} has finished; see [notify] in queue.toml")
        self._under_way = left


def facts_of(job: jobs.Job) -> dict[str, Any]:
    """What a hook is told."""
    return {
        "id": job.id, "name": job.name, "user": job.user, "state": job.state, "result": job.result,
        "reason": job.reason, "message": (job.message or "")[:2000], "attempt": job.attempt,
        "submitted_at": job.submitted_at, "started_at": job.started_at, "finished_at": job.finished_at,
    }  # fmt: skip
