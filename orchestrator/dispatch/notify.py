"""Tell people that a job has finished: a command of theirs, a webhook, or both (queue.toml, `[notify]`).

Everybody is told at least once, over the worker's own restarts: how far it has come, and of whom nobody could be told
yet, is kept in the registry. Each telling is a process of its own (`telling`), so that a hook that hangs holds nobody
up; what it says goes to the worker's log. What fails is tried again, a few times.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.dispatch.telling import BY_COMMAND, BY_WEBHOOK
from orchestrator.registry import controls, history, jobs
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import Policy

PATIENCE = 150.0  #: seconds that a telling may take; hook and webhook have 60 each (see `telling`)
AT_ONCE = 8  #: tellings that may be under way
AGAIN_AFTER = (10.0, 60.0, 300.0, 1800.0)  #: seconds after a telling that has failed; then nobody is told
_BATCH = 50  #: taken up while fewer than this are ready to be told
_WAITING = 1000  #: those that wait for their next try, at most: a hook that has failed for days is no reason to forget


@dataclass(frozen=True)
class _Telling:
    """`ways`: by which somebody is still to be told."""

    event: int
    facts: dict[str, Any]
    tries: int = 0
    not_before: float = 0.0
    ways: int = BY_COMMAND | BY_WEBHOOK


class Notifier:
    def __init__(
        self, registry: Registry, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry, self._log, self._clock = registry, log, clock
        self._told: int | None = None  #: the last event that has been taken up
        self._due: list[_Telling] = []
        self._under_way: list[tuple[_Telling, subprocess.Popen[bytes], float]] = []
        self._off = False  #: the registry knows that nobody wants to be told

    @property
    def busy(self) -> bool:
        return bool(self._under_way or self._due)

    def tell(self, policy: Policy) -> None:
        """One round: let go of tellings that have ended, and start those that are due."""
        self._reap()
        if not policy.notify_command and policy.notify_webhook is None:
            self._forget()
            return
        self._off = False
        self._take_up()
        chosen = self._ready()[: AT_ONCE - len(self._under_way)]
        for one in chosen:
            self._due.remove(one)
            self._start(one, policy)
        if chosen:
            self._keep()

    def _ready(self) -> list[_Telling]:
        return [one for one in self._due if one.not_before <= self._clock()]

    def _forget(self) -> None:
        """Who turns notifications on does not want to hear of all that ended while they were off."""
        if not self._off:
            with self._registry.write() as conn:
                controls.clear(conn, controls.NOTIFIED)
                controls.clear(conn, controls.UNTOLD)
            self._told, self._due, self._off = None, [], True

    def _take_up(self) -> None:
        """What has ended since the last look."""
        if self._told is None:
            self._begin()
        assert self._told is not None
        if len(self._ready()) >= _BATCH or len(self._due) >= _WAITING:
            return
        with self._registry.read() as conn:
            found = jobs.finished_since(conn, self._told, limit=_BATCH)
        if found:
            self._due += [_Telling(event, facts_of(job)) for event, job in found if job.result is not None]
            self._told = found[-1][0]
            self._keep()

    def _begin(self) -> None:
        """Where an earlier worker has come to; or from now on."""
        with self._registry.write() as conn:
            known, untold = controls.get(conn, controls.NOTIFIED), controls.get(conn, controls.UNTOLD)
            if known is None:
                controls.put(conn, controls.NOTIFIED, history.last_event(conn), by="worker", at=time.time())
            self._told = history.last_event(conn) if known is None else int(known.value)
            kept = {} if untold is None else _kept(untold.value)
            left = jobs.finished_at_events(conn, kept)
        found = [_Telling(event, facts_of(job), **kept[event]) for event, job in left if job.result is not None]
        self._due = [one for one in found if one.tries <= len(AGAIN_AFTER)]
        for one in found:
            if one not in self._due:
                self._log(f"worker: {_nobody(one, 'it had not ended when the worker left')}")

    def _keep(self) -> None:
        """One that is under way has had that try: a hook that outlives worker after worker does not get it for ever."""
        tried = [replace(one, tries=one.tries + 1) for one, _, _ in self._under_way]
        untold = {str(one.event): {"tries": one.tries, "ways": one.ways} for one in (*self._due, *tried)}
        with self._registry.write() as conn:
            controls.put(conn, controls.NOTIFIED, self._told, by="worker", at=time.time())
            controls.put(conn, controls.UNTOLD, untold, by="worker", at=time.time())

    def _start(self, one: _Telling, policy: Policy) -> None:
        order = {
            "facts": one.facts,
            "command": list(policy.notify_command) if one.ways & BY_COMMAND else [],
            "webhook": policy.notify_webhook if one.ways & BY_WEBHOOK else None,
        }
        command = [sys.executable, "-P", "-m", "orchestrator.dispatch.telling"]
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
            assert process.stdin is not None
            self._under_way.append((one, process, self._clock()))
            with process.stdin:
                process.stdin.write(json.dumps(order).encode())  # less than a pipe holds: it does not block
        except OSError as error:
            if not any(other is one for other, _, _ in self._under_way):
                self._failed(one, one.ways, str(error))

    def _reap(self) -> None:
        ended = [
            (one, process) for one, process, began in self._under_way
            if process.poll() is not None or self._clock() - began >= PATIENCE
        ]  # fmt: skip
        if not ended:
            return
        self._under_way = [entry for entry in self._under_way if entry[:2] not in ended]
        for one, process in ended:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.returncode:  # which ways have failed; a signal's number is below 0
                self._failed(one, max(process.returncode, 0) & one.ways or one.ways, "it failed")
        if not self._off:
            self._keep()

    def settle(self, seconds: float = 3.0) -> None:
        """Before the worker leaves: those who are being told just now need not be told again by the next one."""
        deadline = time.monotonic() + seconds
        while self._under_way and time.monotonic() < deadline:
            time.sleep(0.05)
            self._reap()

    def _failed(self, one: _Telling, ways: int, why: str) -> None:
        if one.tries >= len(AGAIN_AFTER) or self._off:
            said = _nobody(one, why)
        else:
            wait = AGAIN_AFTER[one.tries]
            again = replace(one, tries=one.tries + 1, not_before=self._clock() + wait, ways=ways)
            self._due.append(again)
            said = f"the news that job {one.facts['id']} has finished ({why}) is told again in {wait:.0f} s"
        self._log(f"worker: {said}")


def _nobody(one: _Telling, why: str) -> str:
    return f"nobody could be told that job {one.facts['id']} has finished ({why}); see [notify] in queue.toml"


def _kept(value: dict[str, dict[str, int]] | list[int]) -> dict[int, dict[str, int]]:
    """event -> tries and ways; an earlier version of ptq kept the events alone."""
    return {int(event): {} for event in value} if isinstance(value, list) else {int(key): value[key] for key in value}


def facts_of(job: jobs.Job) -> dict[str, Any]:
    """What a hook is told."""
    return {
        "id": job.id, "name": job.name, "user": job.user, "state": job.state, "result": job.result,
        "reason": job.reason, "message": (job.message or "")[:2000], "attempt": job.attempt,
        "submitted_at": job.submitted_at, "started_at": job.started_at, "finished_at": job.finished_at,
    }  # fmt: skip
