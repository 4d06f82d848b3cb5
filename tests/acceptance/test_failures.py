"""What docs/explanation/failures.md promises, by real failures: no room on the disk, no memory, folders that vanish."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError
from queue_helpers import add_jobs, recipe, wait_until
from test_queue import Box, box, ptq

from orchestrator import failpoints
from orchestrator.cli import logs
from orchestrator.cli.output.views import worker_is_here
from orchestrator.dispatch.running import processes, runlog
from orchestrator.paths import RunPaths
from orchestrator.recipe.schema import Recipe
from orchestrator.registry import history, workers
from orchestrator.registry.history import JobEvent
from orchestrator.states import JobResult, JobState, Reason

CaptureBytes = pytest.CaptureFixture[bytes]

__all__ = ["box"]
RECIPE = recipe()


@pytest.fixture(autouse=True)
def armed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "failpoints"
    folder.mkdir()
    monkeypatch.setenv("PTQ_FAILPOINTS", str(folder))
    return folder


def events_of(box: Box, job_id: int) -> list[JobEvent]:
    with box.registry.read() as conn:
        return history.list_events(conn, job_id)


def test_memory_beyond_the_limit_ends_the_run_at_once_and_says_so(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTQ_RUN_MEMORY", str(64 << 20))
    [greedy], [modest] = (
        add_jobs(box.registry, behaviour="greedy", max_attempts=1, fuse="never"),
        add_jobs(box.registry),
    )
    box.work_until_idle()
    job = box.job(greedy)
    assert (job.result, job.reason) == (JobResult.FAILED, Reason.HOST_OOM)
    assert "more than its limit of 0.06 GiB (resources.memory)" in (job.message or "")
    box.assert_trained_as_if_undisturbed(modest)


def test_a_removed_folder_of_a_job_costs_that_job_a_try_and_its_neighbours_nothing(box: Box) -> None:
    [removed] = add_jobs(box.registry, behaviour="pauses")
    [neighbour] = add_jobs(box.registry)
    box.worker(slots=1)
    job = box.until(removed, step=12)
    assert box.job(neighbour).run_id == job.run_id
    rank = box.rank(job)
    box.registry.paths.job(removed).root.rename(box.home / "away")
    os.kill(rank, signal.SIGCONT)
    for job_id in (removed, neighbour):
        box.until(job_id, state=JobState.FINISHED)
    wait_until(box.all_slots_are_free, what="the end of the last run")
    for job_id in (removed, neighbour):
        box.assert_trained_as_if_undisturbed(job_id)
    requeued = [event for event in events_of(box, removed) if event.kind == "queued"][1:]
    assert [event.detail["reason"] for event in requeued] == [Reason.FOLDER_LOST]
    assert box.job(removed).counted_attempts == 2
    assert box.job(neighbour).counted_attempts == 1


def test_a_removed_folder_of_a_run(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTQ_GRACE", "0.5")  # a halted program does not hear that it should go
    [job_id] = add_jobs(box.registry, behaviour="pauses")
    box.worker()
    job = box.until(job_id, step=12)
    box.registry.paths.run(job.run_id or 0).root.rename(box.home / "away")
    box.until(job_id, state=JobState.FINISHED)
    box.assert_trained_as_if_undisturbed(job_id)
    assert box.job(job_id).attempt == 2
    requeued = [event for event in events_of(box, job_id) if event.kind == "queued"][1:]
    assert [event.detail["reason"] for event in requeued] == [Reason.WORKER_LOST]


def test_a_disk_without_room_loses_nothing_that_was_trained(box: Box, armed: Path) -> None:
    [job_id] = add_jobs(box.registry)
    (armed / "worker.staged").write_text("ENOSPC")
    box.work_until_idle()
    assert not (armed / "worker.staged").exists()
    box.assert_trained_as_if_undisturbed(job_id)
    assert box.job(job_id).attempt == 1


def test_what_has_ended_inside_a_living_run_is_kept_as_soon_as_there_is_room(box: Box, armed: Path) -> None:
    [short], [long] = add_jobs(box.registry), add_jobs(box.registry, steps=100_000)
    (armed / "worker.staged").write_text("ENOSPC")
    box.worker(slots=1)
    box.assert_trained_as_if_undisturbed(box.until(short, state=JobState.FINISHED).id, alone=False)
    assert not (armed / "worker.staged").exists()
    assert (box.job(long).state, box.job(long).run_id) == (JobState.RUNNING, box.job(short).run_id)


def test_a_cancel_while_the_worker_is_about_to_queue_the_job_again(box: Box, armed: Path) -> None:
    [job_id] = add_jobs(box.registry, behaviour="pauses")
    worker = box.worker()
    job = box.until(job_id, step=12)
    (armed / "worker.settling").write_text("SIGSTOP")
    os.kill(box.supervisor(job)["pid"], signal.SIGKILL)
    cancel_while_it_halts(box, worker, job_id)


def test_a_cancel_while_the_worker_finds_that_it_cannot_start_the_job(box: Box, armed: Path) -> None:
    [job_id] = add_jobs(box.registry)
    box.registry.paths.jobs.mkdir()
    (box.registry.paths.jobs / str(job_id)).write_text("a file where a folder should be")
    (armed / "worker.claimed").write_text("SIGSTOP")
    cancel_while_it_halts(box, box.worker(), job_id)


def cancel_while_it_halts(box: Box, worker: subprocess.Popen[str], job_id: int) -> None:
    wait_until(lambda: "T" in {found.state for found in [processes.look(worker.pid)] if found}, what="the halt")
    assert ptq("cancel", str(job_id)) == f"job {job_id} stopping\n"
    worker.send_signal(signal.SIGCONT)
    job = box.until(job_id, state=JobState.FINISHED)
    assert (job.result, job.reason, job.attempt) == (JobResult.CANCELLED, Reason.CANCELLED_BY_USER, 1)
    wait_until(box.all_slots_are_free, what="the end of its lease")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_is_really_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home on 3 MB: nothing is lost while it is full, and work goes on when there is room."""
    home = tmp_path / "small"
    home.mkdir()
    with small_disk(home, "3m"):
        monkeypatch.setenv("PTQ_HOME", str(home))
        box = Box(home)
        [job_id] = add_jobs(box.registry, behaviour="pauses")
        worker = box.worker()
        rank = box.rank(box.until(job_id, step=12))
        fill(home / "ballast")
        os.kill(rank, signal.SIGCONT)
        time.sleep(1.0)
        assert worker.poll() is None
        assert box.job(job_id).state is not JobState.FINISHED
        said = subprocess.run(["bash", "-c", f"head -c 65536 /dev/zero > {home}/more"], capture_output=True)
        assert said.returncode != 0  # it is still full
        (home / "ballast").unlink()
        (home / "more").unlink()
        deadline = time.monotonic() + 30
        while box.job(job_id).state is not JobState.FINISHED and time.monotonic() < deadline:
            with box.registry.write() as conn:  # the pause after a failed try need not be waited for here
                conn.exec_driver_sql("UPDATE jobs SET not_before = NULL")
            time.sleep(0.2)
        box.assert_trained_as_if_undisturbed(job_id)
        worker.kill()
        worker.communicate()
        box.registry.close()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("root may not mount here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    done = subprocess.run(["dd", "if=/dev/zero", f"of={path}", "bs=4096"], capture_output=True, text=True, check=False)
    assert os.strerror(errno.ENOSPC) in done.stderr


def test_a_locked_registry_is_waited_out_by_the_worker(box: Box) -> None:
    [job_id] = add_jobs(box.registry, behaviour="pauses")
    worker = box.worker()
    job = box.until(job_id, step=12)
    connection = sqlite3.connect(box.home / "registry.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    os.kill(box.rank(job), signal.SIGCONT)
    wait_until(box.registry.paths.run(job.run_id or 0).exit_record.exists, what="the run goes on by itself")
    assert box.job(job_id).state is JobState.RUNNING
    assert worker.poll() is None
    connection.execute("ROLLBACK")
    connection.close()
    box.until(job_id, state=JobState.FINISHED)
    box.assert_trained_as_if_undisturbed(job_id)
    assert box.job(job_id).attempt == 1


def test_a_killed_worker_is_noticed_at_once(box: Box) -> None:
    add_jobs(box.registry, slots=9)
    worker = box.worker()
    wait_until(lambda: worker_is_here(box.registry), what="the worker")
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert not worker_is_here(box.registry)


def test_a_worker_that_is_not_heard_of_is_not_counted_on_whatever_the_clock_does(box: Box) -> None:
    with box.registry.write() as conn:
        number = workers.register(conn, host="other", pid=1, pid_started=1, boot_id="b", slots=["cpu:0"], at=1000.0)
    heard = {now: bool(workers_at(box, now)) for now in (1000.0, 1011.9, 1012.1, 900.0)}
    assert heard == {1000.0: True, 1011.9: True, 1012.1: False, 900.0: False}
    assert number == 1


def workers_at(box: Box, now: float) -> list[workers.Worker]:
    with box.registry.read() as conn:
        return workers.present(conn, now=now)


def test_a_long_log_is_cut_and_still_ends_where_it_ends(tmp_path: Path) -> None:
    run = RunPaths(tmp_path)
    with run.log.open("ab", buffering=0) as program:  # keeps its descriptor, as a running program does
        for number in range(1000):
            program.write(f"line {number}\n".encode())
            runlog.bound(run, most=1000)
            assert run.log.stat().st_size <= 1000 + len(f"line {number}\n")
    assert run.old_log.stat().st_size <= 1100
    assert runlog.tail(run).endswith("line 998\nline 999\n")
    assert "line 900\n" in runlog.tail(run)


def test_who_follows_a_log_sees_it_whole_when_it_is_moved(tmp_path: Path, capfdbinary: CaptureBytes) -> None:
    run, shown = RunPaths(tmp_path), 0
    with run.log.open("ab", buffering=0) as program:
        for number in range(200):
            program.write(f"line {number}\n".encode())
            runlog.bound(run, most=500)
            if number % 7 == 0:
                shown = logs._copy(run, shown, None)
    logs._copy(run, shown, None)
    assert capfdbinary.readouterr().out.decode().split("\n") == [*(f"line {number}" for number in range(200)), ""]


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "/etc/x", "a\nb", "a\0b", "-rf", "x" * 101, ""])
def test_no_name_of_a_recipe_leads_out_of_a_folder(name: str) -> None:
    made = {**RECIPE, "name": name}
    with pytest.raises(ValidationError, match="name"):
        Recipe.model_validate(made)
    with pytest.raises(ValidationError, match="dataset"):
        Recipe.model_validate({**RECIPE, "dataset": name})


def test_every_failpoint_has_a_name_that_is_reached_somewhere() -> None:
    package = Path(failpoints.__file__).parent
    text = "".join(path.read_text() for path in package.rglob("*.py"))
    for name in failpoints.NAMES:
        assert f'failpoints.reach("{name}")' in text, name


def test_without_the_setting_nothing_is_looked_up(armed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (armed / "x").write_text("ENOSPC")
    monkeypatch.delenv("PTQ_FAILPOINTS")
    failpoints.reach("x")
    monkeypatch.setenv("PTQ_FAILPOINTS", str(armed))
    with pytest.raises(OSError, match="No space left"):
        failpoints.reach("x")
    failpoints.reach("x")  # once
