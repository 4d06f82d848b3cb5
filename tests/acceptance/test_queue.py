"""The queue as a whole, with real workers, supervisors and processes, and a program that trains nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import unruly
from queue_helpers import FAKE_TRAINING, add_jobs, get, let_go, open_registry, wait_until

from orchestrator.cli.main import main
from orchestrator.dispatch.running import processes
from orchestrator.events import read_events
from orchestrator.paths import read_json
from orchestrator.registry import artifacts, history, jobs, metrics, runs, workers
from orchestrator.registry.jobs import Job
from orchestrator.registry.runs import Claimant
from orchestrator.states import JobResult, JobState, Reason

WORKER = [sys.executable, str(FAKE_TRAINING.with_name("fake_worker.py")), str(FAKE_TRAINING)]
PTQ = [sys.executable, "-c", "from orchestrator.cli.main import main; main()"]
STEPS = 40
#: design: the keys of a job in `ptq status --json`, in this order
STATUS_KEYS = [
    *("id", "name", "user", "state", "result", "reason", "attempt", "group", "base", "method", "dataset"),
    *("progress", "metrics", "artifact", "submitted_at", "started_at", "finished_at"),
    *("waits", "ends_at"),
]
EXPECTED = sum(1 / step for step in range(1, STEPS + 1))


class Box:
    """A home with workers on it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.registry = open_registry(home)
        self.workers: list[subprocess.Popen[str]] = []

    def worker(self, slots: int = 2, *, until_idle: bool = False, inside: Sequence[str] = ()) -> subprocess.Popen[str]:
        """`inside`: what starts it."""
        command = [*inside, *WORKER, str(slots), *(["until-idle"] if until_idle else [])]
        self.workers.append(
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
        return self.workers[-1]

    def work_until_idle(self, slots: int = 2) -> str:
        worker = self.worker(slots, until_idle=True)
        said = worker.communicate(timeout=60)[0]
        assert worker.returncode == 0, said
        return str(said)

    def job(self, job_id: int) -> Job:
        return get(self.registry, job_id)

    def until(self, job_id: int, *, step: int = 0, state: JobState | None = None) -> Job:
        def there() -> bool:
            job = self.job(job_id)
            return job.step >= step and (state is None or job.state is state)

        wait_until(there, seconds=30, what=f"step {step}, state {state} of job {job_id}")
        return self.job(job_id)

    def supervisor(self, job: Job) -> dict[str, Any]:
        assert job.run_id is not None
        return dict(read_json(self.registry.paths.run(job.run_id).supervisor))

    def processes_of(self, job: Job) -> set[int]:
        with self.registry.read() as conn:
            run = runs.get_run(conn, job.run_id or 0)
        return processes.members(run.token) if run is not None else set()

    def rank(self, job: Job) -> int:
        return min(self.processes_of(job) - {self.supervisor(job)["pid"]})

    def assert_trained_as_if_undisturbed(self, job_id: int, *, alone: bool = True) -> None:
        job = self.job(job_id)
        assert (job.state, job.result, job.step, job.steps) == (
            JobState.FINISHED, JobResult.SUCCEEDED, STEPS, STEPS,
        ), job.message  # fmt: skip
        with self.registry.read() as conn:
            losses = metrics.series(conn, job_id, "train", "loss")
            held = runs.live_leases(conn)
            kept = [one for one in artifacts.list_artifacts(self.registry) if one.job_id == job_id]
        assert [step for step, _ in losses] == list(range(1, STEPS + 1))
        assert all(abs(value - sum(1 / i for i in range(1, s + 1))) < 1e-9 for s, value in losses if value)
        assert len(kept) == 1
        assert float((kept[0].path / "prompt.safetensors").read_text()) == pytest.approx(EXPECTED, abs=1e-9)
        assert artifacts.verify(kept[0]) == []
        if not alone:  # its run goes on
            return
        assert {lease.job_id for lease in held} <= {job_id}
        wait_until(self.all_slots_are_free, seconds=5, what="the end of its lease")

    def all_slots_are_free(self) -> bool:
        with self.registry.read() as conn:
            return runs.live_leases(conn) == []


@pytest.fixture
def box(home: Path) -> Iterator[Box]:
    made = Box(home)
    yield made
    for worker in made.workers:
        worker.kill()
        worker.communicate()
    with made.registry.read() as conn:
        tokens = [run.token for job in jobs.list_jobs(conn) if (run := runs.get_run(conn, job.run_id or 0))]
    for token in tokens:
        processes.kill_until_gone(lambda token=token: processes.members(token), timeout=10)  # type: ignore[misc]
    made.registry.close()


def ptq(*arguments: str, code: int = 0) -> str:
    done = subprocess.run([*PTQ, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_undisturbed(box: Box) -> None:
    ids = add_jobs(box.registry, 3)
    box.work_until_idle()
    for job_id in ids:
        box.assert_trained_as_if_undisturbed(job_id)
        assert box.job(job_id).attempt == 1
    with box.registry.read() as conn:
        assert metrics.latest(conn, [1])[1]["base:validation"] == {"bleu": 1.5}
        kinds = [(event.kind, event.attempt) for event in history.list_events(conn, 1)]
    assert kinds == [("queued", 0), ("starting", 1), ("running", 1), ("finished", 1)]


def test_a_killed_worker_costs_the_job_nothing(box: Box) -> None:
    [job_id] = add_jobs(box.registry, behaviour="pauses")
    first = box.worker()
    job = box.until(job_id, step=12)
    first.kill()
    first.wait()
    assert processes.alive(box.supervisor(job)["pid"], box.supervisor(job)["started"])
    os.kill(box.rank(job), signal.SIGCONT)
    box.work_until_idle()
    box.assert_trained_as_if_undisturbed(job_id)
    assert box.job(job_id).attempt == 1


def test_a_run_that_ended_while_no_worker_was_there_is_finished_by_the_next(box: Box) -> None:
    [job_id] = add_jobs(box.registry, behaviour="pauses")
    first = box.worker()
    job = box.until(job_id, step=12)
    first.kill()
    first.wait()
    assert job.run_id is not None
    os.kill(box.rank(job), signal.SIGCONT)
    wait_until(box.registry.paths.run(job.run_id).exit_record.exists)
    assert box.job(job_id).state is JobState.RUNNING
    box.work_until_idle()
    box.assert_trained_as_if_undisturbed(job_id)


def test_a_killed_supervisor_is_noticed_and_the_job_tried_again(box: Box) -> None:
    [job_id] = add_jobs(box.registry, behaviour="pauses")
    box.worker()
    job = box.until(job_id, step=12)
    rank = box.rank(job)
    started = processes.start_time(rank)
    os.kill(box.supervisor(job)["pid"], signal.SIGKILL)
    box.until(job_id, state=JobState.FINISHED)
    assert not processes.alive(rank, started)
    box.assert_trained_as_if_undisturbed(job_id)
    job = box.job(job_id)
    assert (job.attempt, job.counted_attempts) == (2, 2)
    with box.registry.read() as conn:
        requeued = [event for event in history.list_events(conn, job_id) if event.kind == "queued"][1]
    assert requeued.detail["reason"] == Reason.WORKER_LOST


def test_worker_and_supervisor_killed_at_once(box: Box) -> None:
    [job_id] = add_jobs(box.registry, behaviour="pauses")
    first = box.worker()
    job = box.until(job_id, step=12)
    rank = box.rank(job)
    started = processes.start_time(rank)
    first.kill()
    first.wait()
    os.kill(box.supervisor(job)["pid"], signal.SIGKILL)
    assert processes.alive(rank, started)
    os.kill(rank, signal.SIGCONT)  # an orphan that goes on writing
    box.work_until_idle()
    box.assert_trained_as_if_undisturbed(job_id)
    assert not processes.alive(rank, started)
    events, _ = read_events(box.registry.paths.job(job_id).events)
    done = [event["attempt"] for event in events if event["kind"] == "artifact"]
    assert done == [box.job(job_id).attempt]  # 1 where the orphan had ended before anybody looked: not trained twice


@pytest.mark.parametrize(
    ("boot", "reason"), [(processes.boot_id(), Reason.WORKER_LOST), ("another boot", Reason.NODE_REBOOTED)]
)
def test_a_claim_whose_worker_died_before_it_could_start_anything(box: Box, boot: str, reason: Reason) -> None:
    job_id, waiting = add_jobs(box.registry, 2)
    with box.registry.write() as conn:
        conn.exec_driver_sql("UPDATE jobs SET submitted_at = 1.0")  # long before this machine was started
        host = box.registry.box
        number = workers.register(conn, host=host, pid=1, pid_started=1, boot_id=boot, slots=["cpu:0"], at=1.0)
        assert runs.claim(conn, job_id, 0, ["cpu:0"], Claimant(number, host, boot), token="lost", at=1.0)
    box.work_until_idle()
    box.assert_trained_as_if_undisturbed(job_id)
    box.assert_trained_as_if_undisturbed(waiting)
    assert [box.job(number).attempt for number in (job_id, waiting)] == [2, 1]
    with box.registry.read() as conn:
        requeued = [event for event in history.list_events(conn, job_id) if event.kind == "queued"][1]
    assert requeued.detail["reason"] == reason


def test_a_killed_rank(box: Box) -> None:
    [job_id] = add_jobs(box.registry, behaviour="pauses")
    box.worker()
    os.kill(box.rank(box.until(job_id, step=12)), signal.SIGKILL)
    box.until(job_id, state=JobState.FINISHED)
    box.assert_trained_as_if_undisturbed(job_id)
    assert box.job(job_id).attempt == 2


def test_a_poison_job_stops_at_its_limit_and_harms_nobody(box: Box) -> None:
    [poison], [other] = add_jobs(box.registry, behaviour="poison", max_attempts=2), add_jobs(box.registry)
    box.work_until_idle(slots=1)
    job = box.job(poison)
    assert (job.result, job.reason, job.attempt) == (JobResult.FAILED, Reason.PROCESS_KILLED, 2)
    assert "try 2 of 2" in (job.message or "")
    box.assert_trained_as_if_undisturbed(other)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("nan", Reason.NAN_LOSS),
        ("crash", Reason.CUDA_OOM),
        ("empty", Reason.INCOMPLETE_ARTIFACT),
        ("no-manifest", Reason.INCOMPLETE_ARTIFACT),
    ],
)
def test_the_jobs_own_failures_are_not_tried_again(box: Box, behaviour: str, reason: Reason) -> None:
    [job_id] = add_jobs(box.registry, behaviour=behaviour)
    box.work_until_idle()
    job = box.job(job_id)
    assert (job.state, job.result, job.reason, job.attempt) == (JobState.FINISHED, JobResult.FAILED, reason, 1)
    assert job.artifact_id is None


def test_the_time_limit_then_retry_goes_on_from_the_checkpoint(box: Box) -> None:
    [job_id] = add_jobs(box.registry, behaviour="held", time_limit=1.0)
    box.work_until_idle()
    job = box.job(job_id)
    assert (job.result, job.reason) == (JobResult.FAILED, Reason.TIMEOUT)
    reached = job.step
    assert 0 < reached < STEPS
    let_go(box.registry, job_id)
    assert ptq("retry", str(job_id)) == f"job {job_id} queued\n"
    box.work_until_idle()
    log = box.registry.paths.job(job_id).events.read_text()
    assert f'"resumed_from": {reached}' in log
    assert box.job(job_id).attempt == 2


def test_cancel_a_live_job_and_a_queued_one(box: Box) -> None:
    live, queued = add_jobs(box.registry, 2, behaviour="held", fuse="never")
    worker = box.worker(slots=1)
    job = box.until(live, step=3)
    worker.kill()  # cancelling works without a worker
    worker.wait()
    assert ptq("cancel", str(live), str(queued)) == f"job {live} stopping\njob {queued} cancelled\n"
    wait_until(lambda: box.processes_of(job) == set(), what="the end of its processes")
    box.work_until_idle()
    for job_id in (live, queued):
        job = box.job(job_id)
        assert (job.state, job.result, job.reason) == (
            JobState.FINISHED,
            JobResult.CANCELLED,
            Reason.CANCELLED_BY_USER,
        )
    assert "had finished already" in subprocess.run([*PTQ, "cancel", "1"], capture_output=True, text=True).stderr


def test_no_process_of_a_cancelled_job_survives(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it has become: the state is written and the slot is free only after the last of them."""
    monkeypatch.setenv("PTQ_GRACE", "0.5")
    ids = {add_jobs(box.registry, behaviour=kind, fuse="never")[0]: kind for kind in unruly.KINDS}
    box.worker(slots=len(ids))
    folders: dict[int, Path] = {}
    for job_id, kind in ids.items():
        job = box.until(job_id, state=JobState.RUNNING)
        folders[job_id] = box.registry.paths.run(job.run_id or 0).root
        unruly.until_all_is_up(folders[job_id], kind)
    ptq("cancel", *map(str, ids))
    left = dict(ids)

    def all_have_ended() -> bool:
        for job_id in [job_id for job_id in left if box.job(job_id).state is JobState.FINISHED]:
            # The supervisor itself may still be on its way out.
            alive = unruly.who_works_in(folders[job_id]) - {box.supervisor(box.job(job_id))["pid"]}
            assert not alive, left[job_id]
            del left[job_id]
        return not left

    wait_until(all_have_ended, what="their end")
    assert {box.job(job_id).result for job_id in ids} == {JobResult.CANCELLED}
    wait_until(box.all_slots_are_free)


def test_gangs_dependencies_and_what_can_never_run(box: Box) -> None:
    [bad] = add_jobs(box.registry, behaviour="nan")
    [pair] = add_jobs(box.registry, slots=2, after=[])
    [after_bad] = add_jobs(box.registry, after=[bad])
    [after_pair] = add_jobs(box.registry, after=[pair])
    [huge] = add_jobs(box.registry, slots=5)
    said = box.work_until_idle()
    assert box.job(after_bad).reason is Reason.DEPENDENCY_FAILED
    assert box.job(after_bad).result is JobResult.CANCELLED
    box.assert_trained_as_if_undisturbed(pair)
    box.assert_trained_as_if_undisturbed(after_pair)
    assert (box.job(after_pair).started_at or 0) >= (box.job(pair).finished_at or 0)
    assert box.job(huge).state is JobState.QUEUED
    assert f"{{{huge}: 'needs 5 slots, this worker has 2'}}" in said


def test_one_worker_per_home_and_it_leaves_without_its_runs(box: Box) -> None:
    [job_id] = add_jobs(box.registry, behaviour="held")
    first = box.worker()
    job = box.until(job_id, step=3)
    second = box.worker()
    said = second.communicate(timeout=30)[0]
    assert second.returncode != 0
    assert f"a worker is at work here already (pid {first.pid})" in said
    first.send_signal(signal.SIGTERM)
    assert f"running [{job.run_id}]" in first.communicate(timeout=30)[0]
    assert first.returncode == 0
    assert processes.alive(box.supervisor(job)["pid"], box.supervisor(job)["started"])
    let_go(box.registry, job_id)
    box.work_until_idle()
    box.assert_trained_as_if_undisturbed(job_id)
    assert box.job(job_id).attempt == 1


def test_a_job_whose_folder_cannot_be_written_does_not_stop_the_queue(box: Box) -> None:
    [bad], [good] = add_jobs(box.registry, max_attempts=2), add_jobs(box.registry)
    box.registry.paths.jobs.mkdir()
    (box.registry.paths.jobs / str(bad)).write_text("a file where a folder should be")
    box.work_until_idle()
    assert (box.job(bad).result, box.job(bad).reason) == (JobResult.FAILED, Reason.LAUNCH_FAILED)
    box.assert_trained_as_if_undisturbed(good)


def test_what_the_command_shows(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    def ptq(*arguments: str, code: int = 0) -> str:
        """In this process: a dozen commands need not start a dozen interpreters."""
        monkeypatch.setattr(sys, "argv", ["ptq", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsysbinary.readouterr()
        assert (end.value.code or 0) == code, said.err
        return (said.err if code else said.out).decode()

    done, queued = add_jobs(box.registry, 1)[0], add_jobs(box.registry, 1, slots=3)[0]
    box.work_until_idle()
    shown = json.loads(ptq("status", "--json"))
    assert list(shown) == ["gpus", "jobs", "reservations", "users", "paused"]
    assert [job["id"] for job in shown["jobs"]] == [queued, done]
    assert list(shown["jobs"][1]) == STATUS_KEYS
    assert shown["jobs"][1]["metrics"]["validation"] == {"bleu": 60.0}
    assert shown["jobs"][1]["progress"] == {"step": STEPS, "steps": STEPS}
    assert "100%" in ptq("status")
    assert ptq("status", str(done)).count("\n") == 2
    assert f"fake training: job {done}, attempt 1" in ptq("logs", str(done))
    assert ptq("logs", str(done), "--lines", "0") == ""
    assert "fake training" in ptq("logs", "-f", str(done), "--lines", "1")
    assert "starting" in ptq("events", str(done))
    assert json.loads(ptq("show", str(done), "--json"))["lineage"]["dataset"]["ref"] == "rows@1"
    assert "60" in ptq("show", str(done))
    for verb in ("show", "logs", "events", "cancel", "retry", "status"):
        assert "there is no job 99" in ptq(verb, "99", code=3)
    assert "has succeeded" in ptq("retry", str(done), code=2)
    assert ptq("cancel", str(queued)) == f"job {queued} cancelled\n"


def test_logs_follow_a_job_over_its_tries_and_workers(box: Box) -> None:
    [job_id] = add_jobs(box.registry, behaviour="pauses")
    first = box.worker()
    follower = subprocess.Popen(
        [*PTQ, "logs", "-f", str(job_id)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    rank = box.rank(box.until(job_id, step=12))
    first.kill()  # it is followed over its workers too
    first.wait()
    box.worker()
    os.kill(rank, signal.SIGKILL)
    out, _ = follower.communicate(timeout=40)
    assert [f"attempt {n}, pid" in out for n in (1, 2, 3)] == [True, True, False]


def test_the_worker_is_cheap_when_idle(box: Box) -> None:
    [first] = add_jobs(box.registry, steps=1)
    add_jobs(box.registry, 30, slots=9)  # wait for ever
    worker = box.worker()
    box.until(first, state=JobState.FINISHED)
    wait_until(box.all_slots_are_free)  # from now on it only waits
    before = _cpu_seconds(worker.pid)
    time.sleep(1)
    assert _cpu_seconds(worker.pid) - before < 0.2


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
