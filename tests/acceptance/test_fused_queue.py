"""Runs that several jobs share, with real workers, supervisors and processes, and a program that trains nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from queue_helpers import FAKE_TRAINING, add_jobs, get, let_go, open_registry, wait_until

from orchestrator.dispatch.control import cancel
from orchestrator.dispatch.running import processes
from orchestrator.dispatch.scheduling.slots import CpuSlots
from orchestrator.dispatch.worker import Worker
from orchestrator.events import read_events
from orchestrator.paths import read_json
from orchestrator.registry import history, jobs, runs
from orchestrator.registry.storage.engine import Registry
from orchestrator.states import JobResult, JobState, Reason

PATIENCE = 60.0


class Box:
    """A worker of one slot in this process, whose rounds the test takes itself."""

    def __init__(self, home: Path, **options: Any) -> None:
        self.registry: Registry = open_registry(home)
        self.said: list[str] = []
        self.worker = Worker(
            self.registry,
            CpuSlots(1),
            command=lambda spec, paths: [sys.executable, str(FAKE_TRAINING), str(paths.root)],
            log=self.said.append,
            **options,
        )

    def work(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        self.worker.work(until=lambda: until() or time.monotonic() > deadline)
        assert until(), self.said

    def job(self, number: int) -> jobs.Job:
        return get(self.registry, number)

    def at(self, number: int, step: int) -> bool:
        with self.registry.read() as conn:
            return any(job.step >= step for job in jobs.list_jobs(conn, ids=[number]))

    def ended(self, *numbers: int) -> bool:
        return all(self.job(number).result is not None for number in numbers)

    def succeeded(self, *numbers: int) -> None:
        for number in numbers:
            job = self.job(number)
            assert (job.result, job.step) == (JobResult.SUCCEEDED, job.steps), job.message

    def program(self, run: int) -> int:
        with self.registry.read() as conn:
            found = runs.get_run(conn, run)
        assert found is not None
        supervisor = read_json(self.registry.paths.run(run).supervisor)["pid"]
        return min(processes.members(found.token) - {supervisor})

    def no_lease(self) -> bool:
        with self.registry.read() as conn:
            return runs.live_leases(conn) == []

    def close(self) -> None:
        end_runs(self.registry)
        self.registry.close()


def end_runs(registry: Registry) -> None:
    """Of a test that has failed nobody is left."""
    with registry.read() as conn:
        tokens = [run.token for number in range(1, 20) if (run := runs.get_run(conn, number))]
    for token in tokens:
        processes.kill_until_gone(lambda token=token: processes.members(token), timeout=10)  # type: ignore[misc]


@pytest.fixture
def box(home: Path) -> Iterator[Box]:
    made = Box(home)
    yield made
    made.close()


def ptq(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "orchestrator.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


def test_a_job_joins_what_runs_and_another_leaves_it(box: Box) -> None:
    add_jobs(box.registry, 2, behaviour="held")
    shown: list[str] = []

    def script() -> bool:
        if box.at(1, 5) and len(box.said) == 2:
            add_jobs(box.registry, 1, behaviour="held", steps=30)
            box.said.append("submitted")
        if box.at(3, 3) and not shown:
            shown.extend([ptq("status").stdout, ptq("logs", "3", "--lines", "0").stderr])
            cancel(box.registry, ["2"], user="ada", now=time.time())
            let_go(box.registry, 3)
        return box.ended(2, 3)

    box.work(script)
    assert "with jobs 2-3" in shown[0]
    assert "jobs 1-3 in run 1" in shown[0]
    assert "the log of run 1, which job 3 shared with jobs 1-2" in shown[1]
    box.succeeded(3)
    cancelled = box.job(2)
    assert (cancelled.result, cancelled.reason) == (JobResult.CANCELLED, Reason.CANCELLED_BY_USER)
    assert 0 < cancelled.step < cancelled.steps
    assert {box.job(number).run_id for number in (1, 2, 3)} == {1}
    assert box.job(1).state is JobState.RUNNING  # and its run goes on
    let_go(box.registry, 1)
    box.work(lambda: box.ended(1) and box.no_lease())
    box.succeeded(1)
    assert box.job(1).attempt == 1


def test_a_killed_program_takes_all_its_jobs_down_and_all_go_on(box: Box) -> None:
    ids = add_jobs(box.registry, 3, behaviour="held")
    killed: list[int] = []

    def script() -> bool:
        if all(box.at(number, 12) for number in ids) and not killed:
            killed.append(box.program(1))
            os.kill(killed[0], signal.SIGKILL)
            let_go(box.registry, *ids)
        return box.ended(*ids)

    box.work(script)
    box.succeeded(*ids)
    assert {box.job(number).attempt for number in ids} == {2}
    assert {box.job(number).run_id for number in ids} == {2}  # one crash parts nobody
    with box.registry.read() as conn:
        assert history.crashes_in_company(conn, ids) == dict.fromkeys(ids, 1)
    events, _ = read_events(box.registry.paths.job(1).events)
    assert [event["resumed_from"] > 0 for event in events if event["kind"] == "started"] == [False, True]


def test_a_job_that_takes_runs_down_ends_up_alone(box: Box) -> None:
    [poison] = add_jobs(box.registry, behaviour="poison", steps=30)
    good = add_jobs(box.registry, 2, steps=30)
    box.work(lambda: box.ended(poison, *good))
    box.succeeded(*good)
    job = box.job(poison)
    assert (job.result, job.reason, job.attempt) == (JobResult.FAILED, Reason.PROCESS_KILLED, 3)
    assert {box.job(number).attempt for number in good} == {3}
    assert len({box.job(number).run_id for number in (poison, *good)}) == 3  # each by itself at last


def test_a_failure_and_a_time_limit_are_one_jobs_own(box: Box) -> None:
    [nan] = add_jobs(box.registry, behaviour="nan", steps=400)
    [late] = add_jobs(box.registry, steps=400_000, time_limit=1.0)
    [good] = add_jobs(box.registry, steps=150)
    box.work(lambda: box.ended(nan, late, good))
    assert [box.job(n).reason for n in (nan, late, good)] == [Reason.NAN_LOSS, Reason.TIMEOUT, None]
    box.succeeded(good)
    assert {box.job(n).run_id for n in (nan, late, good)} == {1}
    assert {box.job(n).attempt for n in (nan, late, good)} == {1}


def test_a_claim_whose_worker_died_before_the_ticket_is_delivered_by_the_next(box: Box) -> None:
    add_jobs(box.registry, 1, behaviour="held")
    box.work(lambda: box.at(1, 5))
    [late] = add_jobs(box.registry, 1, steps=20)
    shown = ptq("status")
    assert "unwatched" in shown.stdout  # the run goes on by itself
    assert "no worker is running here" in shown.stderr  # and nothing starts
    with box.registry.write() as conn:
        assert runs.join(conn, late, 0, 1, box.worker.me, at=time.time())
    box.work(lambda: box.ended(late))
    box.succeeded(late)
    assert (box.job(late).run_id, box.job(late).attempt) == (1, 1)


def test_a_job_that_was_to_join_a_run_that_has_just_ended_waits_for_another(box: Box) -> None:
    add_jobs(box.registry, 1, behaviour="held")  # still at work when the next one is to join
    box.work(lambda: box.at(1, 1))
    [late] = add_jobs(box.registry, 1, steps=10)
    with box.registry.write() as conn:
        assert runs.join(conn, late, 0, 1, box.worker.me, at=time.time())
    let_go(box.registry, 1)
    wait_until(box.registry.paths.run(1).exit_record.exists, what="the end of run 1")
    box.work(lambda: box.ended(1, late))
    box.succeeded(1, late)
    job = box.job(late)
    assert (job.run_id, job.attempt, job.counted_attempts) == (2, 2, 1)


def test_a_warm_base_takes_the_next_job_and_gives_way_to_another_base(home: Path) -> None:
    box = Box(home, keep_warm=60.0)
    try:
        add_jobs(box.registry, 1, steps=5)
        box.work(lambda: box.ended(1))
        assert not box.no_lease()
        assert "run 1, no job in it now" in ptq("status").stdout
        begun = time.monotonic()
        add_jobs(box.registry, 1, steps=5)
        box.work(lambda: box.at(2, 1))
        joined_within = time.monotonic() - begun
        box.work(lambda: box.ended(2))
        assert box.job(2).run_id == 1
        add_jobs(box.registry, 1, steps=5, fuse="never")
        box.work(lambda: box.ended(3))
        box.succeeded(1, 2, 3)
        assert box.job(3).run_id == 2
        assert read_json(box.registry.paths.run(1).exit_record)["why"] == "idle"
        assert joined_within < 30  # no figure: a machine under test may be slow
    finally:
        box.close()


#: `ptq worker` itself, whose runs train nothing.
LIMITED = """
import sys
from functools import partial
from orchestrator.cli.main import main
from orchestrator.dispatch import worker
program = sys.argv.pop()
worker.Worker = partial(worker.Worker, command=lambda _spec, paths: [sys.executable, program, str(paths.root)])
main()
"""


@pytest.mark.parametrize(
    ("limit", "fit", "why"),
    [
        (["--fuse-jobs", "2"], 2, "may not join run 1: it has 2 jobs, and takes at most 2"),
        (["--fuse-slowdown", "1"], 1, "times as long as alone, more than 1"),
    ],
)
def test_a_job_beyond_what_the_worker_allows_waits_and_is_told_why(
    limit: list[str], fit: int, why: str, home: Path
) -> None:
    registry = open_registry(home)
    *inside, last = add_jobs(registry, fit + 1, behaviour="held")
    command = [sys.executable, "-c", LIMITED, "worker", "--cpu-slots", "1", "--until-idle", *limit, str(FAKE_TRAINING)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as worker:
        try:
            wait_until(lambda: all(get(registry, job).step > 0 for job in inside), seconds=PATIENCE, what="their steps")
            assert why in " ".join(ptq("status").stdout.split())
            assert why in " ".join(ptq("show", str(last)).stdout.split())
            assert get(registry, last).state is JobState.QUEUED
            let_go(registry, inside[0])
            wait_until(lambda: get(registry, last).step > 0, seconds=PATIENCE, what="its turn")
            let_go(registry, *inside, last)
            assert worker.wait(PATIENCE) == 0
        finally:
            worker.kill()
            end_runs(registry)
    assert [get(registry, job).result for job in (*inside, last)] == [JobResult.SUCCEEDED] * (fit + 1)
    assert get(registry, last).run_id == (1 if fit > 1 else 2)  # it came when one had left, or had a run of its own
    registry.close()


def test_cancelling_all_jobs_of_a_run_ends_one_that_does_not_listen(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from orchestrator.dispatch.running import start

    spawn = start.spawn_supervisor

    def impatient(run: Any, spec: Any, *rest: Any) -> int:
        spec = replace(spec, grace_seconds=0.5)
        spec.write(run.spec)
        return spawn(run, spec, *rest)

    monkeypatch.setattr(start, "spawn_supervisor", impatient)
    [hangs] = add_jobs(box.registry, behaviour="hang", steps=50)
    [other] = add_jobs(box.registry, steps=5000)
    box.work(lambda: box.at(hangs, 5))
    cancel(box.registry, [str(hangs)], user="ada", now=time.time())
    assert not box.registry.paths.run(1).stop_request.exists()  # a neighbour is there
    cancel(box.registry, [str(other)], user="ada", now=time.time())
    box.work(lambda: box.ended(hangs, other) and box.no_lease())
    assert {box.job(n).result for n in (hangs, other)} == {JobResult.CANCELLED}


def test_a_run_that_hangs_is_ended_when_the_time_of_its_longest_job_is_over(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from orchestrator.dispatch.running import start

    spawn = start.spawn_supervisor

    def impatient(run: Any, spec: Any, *rest: Any) -> int:
        spec = replace(spec, grace_seconds=0.5)
        spec.write(run.spec)
        return spawn(run, spec, *rest)

    monkeypatch.setattr(start, "spawn_supervisor", impatient)
    [hangs] = add_jobs(box.registry, behaviour="hang", steps=50, time_limit=1.0)
    [other] = add_jobs(box.registry, steps=50, time_limit=2.0)
    box.work(lambda: box.ended(hangs, other))
    assert {box.job(n).reason for n in (hangs, other)} == {Reason.TIMEOUT}
