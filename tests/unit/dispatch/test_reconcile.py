"""What a worker makes of a run in which something goes wrong, on a simulated machine."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machine import Machine
from queue_helpers import add_jobs, get, open_registry

from orchestrator.dispatch.control import cancel
from orchestrator.dispatch.running import processes, reconcile, settle, strikes
from orchestrator.dispatch.scheduling.scheduler import Plan
from orchestrator.dispatch.scheduling.slots import GpuSlots
from orchestrator.dispatch.worker import PLACE_EVERY, REST, Worker
from orchestrator.registry import reservations, runs, usage
from orchestrator.registry.jobs import Job
from orchestrator.states import JobResult, JobState, Reason


class Box:
    def __init__(self, home: Path, machine: Machine) -> None:
        self.registry, self.machine, self.said = open_registry(home), machine, list[str]()
        self.worker = Worker(
            self.registry, GpuSlots(source=self.machine), log=self.said.append, clock=self.machine.clock
        )
        self.worker._register()
        self.worker.runs.reap = lambda: None  # type: ignore[method-assign]

    def go_on(self, rounds: int) -> None:
        for _ in range(rounds):
            self.worker._place_again_at = 0.0
            self.worker.look()
            for process in self.machine.supervisors():
                self.machine.supervise(process)
            for process in self.machine.programs():
                self.machine.train(process)

    def leases(self) -> int:
        with self.registry.read() as conn:
            return len(runs.live_leases(conn))


@pytest.fixture
def box(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    monkeypatch.setattr(strikes, "APART", 0.0)
    machine = Machine(home)
    with machine.in_place():
        made = Box(home, machine)
        yield made
        made.registry.close()


def test_a_fault_of_ours_in_one_job_leaves_its_neighbours_alone(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = add_jobs(box.registry, 2, steps=8)
    take_in = reconcile.take_in

    def fails_for_one(registry: Any, job: Job, **options: Any) -> Any:
        if job.id == bad:
            raise RuntimeError("a fault of ours")
        return take_in(registry, job, **options)

    monkeypatch.setattr(reconcile, "take_in", fails_for_one)
    box.go_on(40)
    failed, trained = get(box.registry, bad), get(box.registry, good)
    assert (failed.result, failed.reason) == (JobResult.FAILED, Reason.CRASHED)
    assert "ptq failed to look after this job (RuntimeError: a fault of ours)" in (failed.message or "")
    assert (trained.state, trained.result, trained.attempt) == (JobState.FINISHED, JobResult.SUCCEEDED, 1)
    assert any("a fault of ours" in line for line in box.said)
    assert box.leases() == 0


def test_a_fault_of_ours_in_keeping_an_artifact_is_forgiven_a_few_times_while_the_run_goes_on(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    [short], [long] = add_jobs(box.registry, steps=2), add_jobs(box.registry, steps=1000)
    tries = []

    def fails(*_: Any) -> None:
        tries.append(1)
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(settle.artifacts, "stage_artifact", fails)
    box.go_on(20)
    assert (get(box.registry, short).result, get(box.registry, short).reason) == (JobResult.FAILED, Reason.CRASHED)
    assert (len(tries), get(box.registry, long).state) == (strikes.MOST, JobState.RUNNING)
    for program in box.machine.programs():
        box.machine.kill(program)


def test_a_fault_of_ours_in_a_whole_run_costs_a_try_each(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = add_jobs(box.registry, 2, steps=8)
    follow = reconcile.Runs._follow

    def fails_for_the_first(self: reconcile.Runs, run: runs.Run, *arguments: Any, **options: Any) -> None:
        if run.id == 1:
            raise RuntimeError("a fault of ours")
        follow(self, run, *arguments, **options)

    monkeypatch.setattr(reconcile.Runs, "_follow", fails_for_the_first)
    box.go_on(40)
    found = [get(box.registry, job_id) for job_id in ids]
    assert [(job.result, job.attempt, job.counted_attempts) for job in found] == [(JobResult.SUCCEEDED, 2, 2)] * 2


def test_who_survives_kill_keeps_the_slots_and_the_job_as_it_is(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    [job_id] = add_jobs(box.registry, steps=50)
    box.go_on(5)
    [program] = box.machine.programs()
    monkeypatch.setattr(box.machine, "kill", lambda process: None)  # stuck in the kernel
    monkeypatch.setattr(box.machine, "train", lambda process: None)
    cancel(box.registry, [str(job_id)], user="ada", now=box.machine.clock())
    [supervisor] = box.machine.supervisors()
    supervisor.child = None  # it has given up, and writes its last word
    supervisor.alive = False
    box.machine._record(supervisor, program)
    box.go_on(5)
    assert (get(box.registry, job_id).state, box.leases()) == (JobState.STOPPING, 1)
    assert any(f"its processes {program.pid} survive KILL; its slots are not free" in line for line in box.said)
    program.alive = False
    program.jobs[0].events.close()
    box.go_on(1)
    assert (get(box.registry, job_id).result, box.leases()) == (JobResult.CANCELLED, 0)


def test_nothing_but_the_attempts_own_folder_is_taken_for_an_artifact(box: Box, tmp_path: Path) -> None:
    [job_id] = add_jobs(box.registry, steps=50)
    box.go_on(5)
    [program] = box.machine.programs()
    [job] = program.jobs
    box.machine.kill(program)
    job.events._file = job.paths.events.open("ab", buffering=0)
    job.leave("artifact", folder=str(tmp_path))  # for example by a base's own code
    box.go_on(5)
    assert get(box.registry, job_id).reason is Reason.INCOMPLETE_ARTIFACT


DAY = 86400.0


def used(box: Box, user: str) -> float:
    with box.registry.read() as conn:
        return usage.used(conn, half_life=1e12, now=box.machine.now).get(user, 0.0)


def a_new_worker(box: Box) -> None:
    said, machine = box.said, box.machine
    box.worker = Worker(box.registry, GpuSlots(source=machine), log=said.append, clock=machine.clock)
    box.worker._register()


@pytest.mark.parametrize("end", ["off", "worker away", "no sign"])
def test_nobody_is_charged_for_what_came_after_a_runs_end(box: Box, end: str) -> None:
    """The box is off for three days, or nobody looks for so long: the run had ended at its start."""
    [job_id] = add_jobs(box.registry, steps=50)
    box.go_on(6)
    job, began = get(box.registry, job_id), box.machine.now
    assert job.state is JobState.RUNNING
    folder = box.registry.paths.run(job.run_id or 0)
    if end == "off":
        folder.heartbeat.touch()
        os.utime(folder.heartbeat, (began + 100.0, began + 100.0))
    if end == "worker away":
        box.machine.now += 100.0
        for process in box.machine.programs():
            box.machine.kill(process)
        for process in box.machine.supervisors():
            box.machine.supervise(process)
    else:
        box.machine.reboot()
    box.machine.now += 3 * DAY
    a_new_worker(box)
    box.worker.look()
    box.worker._beat()
    expected = 0.0 if end == "no sign" else 100.0
    assert used(box, "ada") == pytest.approx(expected, abs=10.0)


def test_nobody_is_charged_while_the_disk_is_too_full_to_keep_what_was_trained(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "booted_at", lambda: 0.0)
    [job_id] = add_jobs(box.registry, steps=3)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on the device")

    with monkeypatch.context() as patch:
        patch.setattr(settle.artifacts, "stage_artifact", full)
        box.go_on(20)
        assert (box.worker.runs.over, box.leases()) == ([1], 1)
        before = used(box, "ada")
        for _ in range(3):
            box.machine.now += 1000.0
            box.worker._beat()
        assert used(box, "ada") == before
    box.go_on(5)
    assert get(box.registry, job_id).result is JobResult.SUCCEEDED
    assert (box.worker.runs.over, box.leases()) == ([], 0)
    assert before < used(box, "ada") < 100.0  # until its end


def test_a_reservation_costs_nothing_while_the_box_is_off(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    began = box.machine.now
    with box.registry.write() as conn:
        reservations.add(conn, user="eve", uid=7, slots=1, seconds=2 * DAY, note="", at=began)
    box.worker.look()
    box.machine.now += DAY
    monkeypatch.setattr(processes, "booted_at", lambda: began + DAY)
    box.machine.now += 1000.0
    a_new_worker(box)
    box.worker._beat()
    assert used(box, "eve") == pytest.approx(1000.0, abs=10.0)
    box.machine.now += 10 * DAY  # nobody looks while its time ends
    box.worker._place_again_at = 0.0
    box.worker._seen = None
    box.worker.look()
    assert used(box, "eve") == pytest.approx(DAY, abs=1000.0)  # the first part has decayed
    assert box.leases() == 0


def test_a_fault_in_telling_people_keeps_no_job_from_starting(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.dispatch.worker.FAULT_PAUSE", 0.0)

    def fails(_policy: object) -> None:
        raise RuntimeError("nobody is at home")

    monkeypatch.setattr(box.worker._notifier, "tell", fails)
    [job_id] = add_jobs(box.registry, steps=3)
    box.go_on(20)
    assert get(box.registry, job_id).result is JobResult.SUCCEEDED
    assert any("nobody is at home" in line for line in box.said)


def test_neither_a_fault_in_telling_nor_a_slow_look_makes_the_next_look_late(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.dispatch.worker.FAULT_PAUSE", 0.2)  # times PLACE_SHARE: 20 s

    def fails(_policy: object) -> None:
        raise RuntimeError("nobody is at home")

    monkeypatch.setattr(box.worker._notifier, "tell", fails)
    monkeypatch.setattr(box.worker, "_place", Plan)
    monkeypatch.setattr(box.worker, "_pause", lambda: PLACE_EVERY)
    box.worker.look()
    assert box.worker._place_again_at - time.monotonic() < 10.0
    monkeypatch.setattr("orchestrator.dispatch.worker.PLACE_SHARE", 1e12)
    box.worker._seen = None
    box.worker.look()
    assert box.worker._place_again_at - time.monotonic() <= REST
