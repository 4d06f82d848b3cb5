"""Who is told of what when hooks fail, notifications are off, or the worker is another one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from queue_helpers import add_jobs, open_registry, wait_until

from orchestrator.dispatch.notify import AGAIN_AFTER, Notifier
from orchestrator.dispatch.telling import BY_WEBHOOK
from orchestrator.registry import controls, jobs
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import Policy
from orchestrator.states import JobResult, JobState, Reason

OFF = Policy()


class Hook:
    """A command that writes down of which job it was told, and fails as often as it should."""

    def __init__(self, folder: Path) -> None:
        self.log, self.broken = folder / "told", folder / "broken"
        script = folder / "hook.sh"
        script.write_text(f'#!/bin/sh\ncat > /dev/null\necho $PTQ_JOB >> "{self.log}"\n[ ! -e "{self.broken}" ]\n')
        script.chmod(0o755)
        self.policy = Policy(notify_command=(str(script),))

    def told(self) -> list[int]:
        return [int(line) for line in self.log.read_text().split()] if self.log.exists() else []


class Queue:
    def __init__(self, registry: Registry) -> None:
        self.registry, self.now, self.said = registry, 0.0, list[str]()
        self.notifier = self.worker()

    def worker(self) -> Notifier:
        return Notifier(self.registry, self.said.append, clock=lambda: self.now)

    def ends(self) -> int:
        [job] = add_jobs(self.registry)
        with self.registry.write() as conn:
            cancelled = jobs.Move(JobState.FINISHED, JobResult.CANCELLED, Reason.CANCELLED_BY_USER)
            jobs.move(conn, job, 0, cancelled, actor="user:ada", at=time.time())
        return job

    def tell(self, policy: Policy) -> None:
        """A round, and its tellings have ended."""
        self.notifier.tell(policy)
        self.notifier.settle(20.0)


@pytest.fixture
def queue(home: Path) -> Iterator[Queue]:
    registry = open_registry(home)
    yield Queue(registry)
    registry.close()


@pytest.fixture
def hook(tmp_path: Path) -> Hook:
    return Hook(tmp_path)


def test_what_ends_while_nobody_wants_to_be_told_is_never_told(queue: Queue, hook: Hook) -> None:
    queue.tell(hook.policy)
    first = queue.ends()
    queue.tell(hook.policy)
    queue.tell(OFF)
    queue.ends()
    queue.tell(OFF)
    queue.tell(hook.policy)
    last = queue.ends()
    queue.tell(hook.policy)
    assert hook.told() == [first, last]


def test_a_hook_that_fails_is_tried_again_a_few_times_and_later(queue: Queue, hook: Hook) -> None:
    queue.tell(hook.policy)
    hook.broken.touch()
    job = queue.ends()
    queue.tell(hook.policy)
    queue.tell(hook.policy)
    assert hook.told() == [job]  # not at once
    assert f"job {job} has finished (it failed) is told again in 10 s" in queue.said[-1]
    for tries, wait in enumerate(AGAIN_AFTER, start=2):
        queue.now += wait
        queue.tell(hook.policy)
        assert hook.told() == [job] * tries
    assert "nobody could be told" in queue.said[-1]
    assert not queue.notifier.busy


def test_another_worker_tells_what_the_first_could_not_and_nothing_twice(queue: Queue, hook: Hook) -> None:
    queue.tell(hook.policy)
    good = queue.ends()
    queue.tell(hook.policy)
    hook.broken.touch()
    bad = queue.ends()
    queue.tell(hook.policy)
    hook.broken.unlink()
    queue.notifier = queue.worker()
    queue.tell(hook.policy)
    assert hook.told() == [good, bad, bad]
    queue.notifier = queue.worker()
    queue.tell(hook.policy)
    assert hook.told() == [good, bad, bad]


def test_only_the_way_that_failed_is_gone_again(queue: Queue, hook: Hook) -> None:
    nowhere = Policy(notify_command=hook.policy.notify_command, notify_webhook="http://127.0.0.1:9/")
    queue.tell(nowhere)
    job = queue.ends()
    queue.tell(nowhere)
    queue.now += AGAIN_AFTER[0]
    queue.tell(nowhere)
    assert hook.told() == [job]
    assert [line.count("told again") for line in queue.said] == [1, 1]


def test_what_cannot_even_be_started_is_tried_again(queue: Queue, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.tell(hook.policy)
    job = queue.ends()
    with monkeypatch.context() as patch:
        patch.setattr("sys.executable", "/nowhere/python")
        queue.tell(hook.policy)
    assert "No such file" in queue.said[-1]
    queue.now += AGAIN_AFTER[0]
    queue.tell(hook.policy)
    wait_until(lambda: hook.told() == [job])


def test_worker_after_worker_tries_no_oftener_than_one_would(queue: Queue, hook: Hook) -> None:
    queue.tell(hook.policy)
    hook.broken.touch()
    job = queue.ends()
    for _ in range(len(AGAIN_AFTER) + 3):
        queue.tell(hook.policy)
        queue.notifier = queue.worker()
    assert hook.told() == [job] * (1 + len(AGAIN_AFTER))
    assert sum("nobody could be told" in line for line in queue.said) == 1


def test_a_hook_that_outlives_worker_after_worker_is_given_up(queue: Queue, tmp_path: Path) -> None:
    began, go = tmp_path / "began", tmp_path / "go"
    script = tmp_path / "hangs.sh"
    script.write_text(f'#!/bin/sh\necho x >> "{began}"\nwhile [ ! -e "{go}" ]; do sleep 0.05; done\n')
    script.chmod(0o755)
    hangs = Policy(notify_command=(str(script),))
    queue.notifier.tell(hangs)
    queue.ends()
    left = [queue.notifier]
    for tries in range(1, len(AGAIN_AFTER) + 2):
        queue.notifier.tell(hangs)
        wait_until(lambda tries=tries: began.exists() and len(began.read_text().split()) == tries)  # type: ignore[misc]
        queue.notifier = queue.worker()  # the one before has left
        left.append(queue.notifier)
    queue.notifier.tell(hangs)
    assert not queue.notifier.busy
    assert "it had not ended when the worker left" in queue.said[-1]
    go.touch()
    for worker in left:
        worker.settle(20.0)


def test_another_worker_goes_only_the_way_that_had_failed(queue: Queue, hook: Hook) -> None:
    nowhere = Policy(notify_command=hook.policy.notify_command, notify_webhook="http://127.0.0.1:9/")
    queue.tell(nowhere)
    job = queue.ends()
    queue.tell(nowhere)
    queue.notifier = queue.worker()
    queue.tell(nowhere)
    assert hook.told() == [job]


def test_what_an_earlier_version_had_not_told_is_told(queue: Queue, hook: Hook) -> None:
    queue.tell(hook.policy)
    job = queue.ends()
    with queue.registry.write() as conn:
        [(event, _)] = jobs.finished_since(conn, 0, limit=9)
        controls.put(conn, controls.NOTIFIED, event, by="worker", at=0.0)
        controls.put(conn, controls.UNTOLD, [event], by="worker", at=0.0)
    queue.notifier = queue.worker()
    queue.tell(hook.policy)
    assert hook.told() == [job]


def test_those_that_wait_for_their_next_try_silence_nobody(
    queue: Queue, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.dispatch.notify._BATCH", 2)
    queue.tell(hook.policy)
    hook.broken.touch()
    first, second = queue.ends(), queue.ends()
    queue.tell(hook.policy)
    hook.broken.unlink()
    last = queue.ends()
    queue.tell(hook.policy)
    assert sorted(hook.told()) == [first, second, last]


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/{}", "http://127.0.0.1:9 9/{}", "http://127.0.0.1:s3cret/{}"])
def test_the_address_of_a_webhook_is_not_in_the_log(address: str) -> None:
    """Who has it may post there."""
    order = {"command": [], "webhook": address.format("s3cret?token=s3cret"), "facts": {"id": 1}}
    command = [sys.executable, "-P", "-m", "orchestrator.dispatch.telling"]
    told = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True, check=False)
    assert told.returncode == BY_WEBHOOK
    assert "127.0.0.1" in told.stderr
    assert "s3cret" not in told.stderr
