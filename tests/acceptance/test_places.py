"""Numbers that stand for other jobs than before, machines that are called otherwise, and containers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from queue_helpers import add_jobs, open_registry, wait_until
from test_queue import STEPS, Box, box, ptq

from orchestrator.dispatch.running import processes, signs
from orchestrator.paths import RunPaths, read_json, write_json
from orchestrator.registry import history
from orchestrator.registry.care.doctor import examine
from orchestrator.states import JobResult, JobState

__all__ = ["box"]


def take_registry_away(box: Box) -> None:
    box.registry.close()
    for path in box.home.glob("registry.db*"):
        path.unlink()


def test_no_registry_is_made_beside_the_jobs_of_another(box: Box, tmp_path: Path) -> None:
    """Its first job would be number 1 again, and what job 1 has left would be taken for its own."""
    write_json(box.registry.paths.job(1).spec, {})
    write_json(box.registry.paths.run(1).spec, {})
    take_registry_away(box)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    for command in (["init"], ["dataset", "add", "rows", f"--train={tmp_path / 'rows.jsonl'}"]):
        said = ptq(*command, code=1)
        assert "jobs: this is left of another registry" in said
        assert not (box.home / "registry.db").exists()
    advice = said.partition("or there: `")[2].partition("`")[0]
    subprocess.run(advice, shell=True, check=True, cwd=box.home)
    assert ptq("init") == f"{box.home}/registry.db: made\n"


def test_a_folder_that_is_only_called_so_is_in_nobodys_way(home: Path) -> None:
    (home / "runs" / "Nov20_10-00-00_tensorboard").mkdir(parents=True)
    assert ptq("init") == f"{home}/registry.db: made\n"


def test_an_older_registry_that_was_put_back_takes_nothing_for_its_own(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Job 1 had not begun when it was copied; job 2, which it does not know, was another than its job 2 will be."""
    before = add_jobs(box.registry)
    box.registry.snapshot(tmp_path / "copy.db")
    shorter = add_jobs(box.registry, steps=STEPS // 2, fuse="never")
    box.work_until_idle(slots=1)
    assert [box.job(job_id).result for job_id in (*before, *shorter)] == [JobResult.SUCCEEDED] * 2
    take_registry_away(box)
    shutil.copy(tmp_path / "copy.db", box.home / "registry.db")
    box.registry = open_registry(box.home)
    assert add_jobs(box.registry, fuse="never") == shorter
    monkeypatch.setenv("PTQ_FAILPOINTS", str(tmp_path))
    (tmp_path / "worker.claimed").write_text("")
    box.worker(slots=1).wait()  # the next worker finds run 1 claimed, and in its folder how it once ended
    said = box.work_until_idle(slots=1)
    for job_id in (*shorter, *before):
        box.assert_trained_as_if_undisturbed(job_id)
        with box.registry.read() as conn:
            warned = [event for event in history.list_events(conn, job_id) if event.kind == "warning"]
        assert "was set aside" in warned[0].detail["message"]
    set_aside = box.registry.paths.set_aside()
    assert [path.name.partition(".aside-")[0] for path in set_aside] == ["1", "2", "1", "2"]
    assert read_json(set_aside[1] / "artifact-1" / "manifest.json")
    assert said.count("is not this job's; it is in") == 2
    found = [one.where for one in examine(box.registry, now=0.0, hashes=False) if not one.fault]
    assert found == [str(path) for path in set_aside]


def needs(*flags: str) -> pytest.MarkDecorator:
    """Root may make namespaces, where the machine lets it."""
    command = ["unshare", *flags, "true"]
    works = shutil.which(command[0]) and subprocess.run(command, capture_output=True, check=False).returncode == 0
    return pytest.mark.skipif(not works, reason=" ".join(command))


@needs("--uts")
def test_a_machine_that_is_called_otherwise_goes_on_with_its_runs(box: Box) -> None:
    called = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"']
    [job_id] = add_jobs(box.registry, behaviour="pauses")
    first = box.worker(inside=[*called, "monday"])
    job = box.until(job_id, step=12)
    first.kill()
    first.wait()
    other = box.worker(slots=1, inside=[*called, "tuesday"])
    [waiting] = add_jobs(box.registry, steps=3, fuse="never")
    wait_until(lambda: (box.home / "worker.lock").read_text().strip() == str(other.pid), what="the worker")
    os.kill(box.rank(job), signal.SIGCONT)
    box.until(waiting, state=JobState.FINISHED)
    wait_until(box.all_slots_are_free, what="the end of its run")
    assert (box.job(waiting).started_at or 0.0) >= (box.job(job_id).finished_at or 1e12)  # there is one slot
    box.assert_trained_as_if_undisturbed(job_id)
    assert box.job(job_id).attempt == 1


@needs("--pid", "--fork", "--mount-proc")
def test_a_run_in_another_container_is_known_by_its_heartbeat(box: Box) -> None:
    """Its worker is killed there, the container lives; the next worker does not see its pids as they are there."""
    container = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", '"$@" & sleep 1000', "sh"]
    [job_id] = add_jobs(box.registry, behaviour="pauses")
    first = box.worker(inside=container)
    box.until(job_id, step=12)
    inside = psutil.Process(first.pid).children(recursive=True)
    [worker] = [one for one in inside if "fake_worker.py" in one.cmdline()[1]]
    worker.kill()
    other = box.worker()
    wait_until(lambda: (box.home / "worker.lock").read_text().strip() == str(other.pid), what="the worker")
    time.sleep(0.5)  # it has looked
    [rank] = [one for one in inside if one.is_running() and one.status() == psutil.STATUS_STOPPED]
    rank.send_signal(signal.SIGCONT)
    box.until(job_id, state=JobState.FINISHED)
    box.assert_trained_as_if_undisturbed(job_id)
    assert box.job(job_id).attempt == 1
    first.kill()


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_container_that_is_gone_is_known_by_its_silence_whatever_the_clock_does(tmp_path: Path) -> None:
    run, clock = RunPaths(tmp_path), Clock()
    who = {"pid": 1, "started": 1, "boot_id": processes.boot_id(), "pids": "pid:[of another]"}
    write_json(run.supervisor, who)
    heard = signs.Signs(clock)
    for beat in (1.0, 2.0, time.time(), time.time() + 1e6):  # while it lives, also when its clock is wrong
        run.heartbeat.touch()
        os.utime(run.heartbeat, (beat, beat))
        assert heard.supervised(run)
        clock.now += 1.0
    for seconds, alive in ((1.0, True), (signs.LISTENED, False)):
        clock.now += seconds
        assert heard.supervised(run) is alive
    now = time.time()
    os.utime(run.heartbeat, (now, now))
    for seconds, alive in ((0.0, True), (signs.SILENT - 1.0, True), (2.0, False)):
        clock.now += seconds
        assert heard.supervised(run) is alive
    write_json(run.supervisor, {**who, "boot_id": "another"})
    assert not heard.supervised(run)
