"""People who share a box: cards that others use, reservations, pauses, turns, quotas, notifications. Real workers and
processes on cards that a file stands for."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from queue_helpers import FAKE_TRAINING, add_jobs, get, let_go, open_registry, recipe_file, wait_until

from orchestrator.cli import holding
from orchestrator.cli.main import main
from orchestrator.dispatch.lock import worker_lock
from orchestrator.dispatch.running import processes
from orchestrator.dispatch.scheduling.gpus import gpu_source
from orchestrator.dispatch.scheduling.slots import GpuSlots
from orchestrator.dispatch.worker import Worker
from orchestrator.paths import read_json
from orchestrator.registry import controls, history, jobs, reservations, runs, usage, workers
from orchestrator.registry.queue import waiting_jobs
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import load_settings
from orchestrator.states import JobResult, JobState

WORKER = [sys.executable, str(FAKE_TRAINING.with_name("fake_worker.py")), str(FAKE_TRAINING), "gpus"]
GIB = 1 << 30
SOMEBODY: dict[str, Any] = {
    "host": "box", "pid": 1, "pid_started": 1, "boot_id": "boot", "slots": ["gpu:GPU-a"], "at": 0.0
}  # fmt: skip


class Box:
    def __init__(self, home: Path) -> None:
        self.home, self.registry = home, open_registry(home)
        self.cards = home.parent / "gpus.json"
        self.started: list[subprocess.Popen[str]] = []

    def has(self, *cards: dict[str, Any]) -> None:
        """From now on the box has these cards."""
        draft = self.cards.with_suffix(".new")
        draft.write_text(json.dumps(cards))
        draft.replace(self.cards)

    def worker(self, *options: str) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        env = {**os.environ, "PTQ_HOME": str(self.home)}
        self.started.append(subprocess.Popen([*WORKER, *options], text=True, env=env, **pipes))
        return self.started[-1]

    def until(self, job: int, state: JobState, *, step: int = 0) -> jobs.Job:
        def there() -> bool:
            return get(self.registry, job).state is state and get(self.registry, job).step >= step

        wait_until(there, seconds=30, what=f"{state} of job {job}")
        return get(self.registry, job)

    def spec(self, job: jobs.Job) -> dict[str, Any]:
        return dict(read_json(self.registry.paths.run(job.run_id or 0).spec))

    def close(self) -> None:
        for worker in self.started:
            worker.kill()
            worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()
        with self.registry.read() as conn:
            tokens = [run.token for job in jobs.list_jobs(conn) if (run := runs.get_run(conn, job.run_id or 0))]
        for token in tokens:
            processes.kill_until_gone(lambda token=token: processes.members(token), timeout=10)  # type: ignore[misc]
        self.registry.close()


@pytest.fixture
def box(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    made = Box(home)
    monkeypatch.setenv("PTQ_FAKE_GPUS", str(made.cards))
    monkeypatch.setenv("PTQ_USER", "ada")
    made.has({})
    yield made
    made.close()


@pytest.fixture
def neighbour(box: Box) -> Iterator[Box]:
    """Another home on the same box, with the same cards."""
    (box.home.parent / "neighbour").mkdir()
    made = Box(box.home.parent / "neighbour")
    yield made
    made.close()


@pytest.fixture
def ptq(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["ptq", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        assert (end.value.code or 0) == code, said.out + said.err
        return said.err if code else said.out

    return run


def test_a_card_that_somebody_uses_by_hand_is_left_alone_until_it_is_free(box: Box, ptq: Any) -> None:
    box.has({"uuid": "GPU-a", "processes": [{"pid": 8812, "user": "bob", "bytes": 5 * GIB}]}, {"uuid": "GPU-b"})
    [pair] = add_jobs(box.registry, slots=2, steps=5)
    box.worker()

    def waits() -> str:
        return str(json.loads(ptq("status", "--json"))["jobs"][0]["waits"])

    wait_until(lambda: "external" in waits(), what="a reason")
    assert waits() == "needs 2 GPUs, 1 free, 1 external (bob, pid 8812, 5.0 GiB)"
    shown = json.loads(ptq("status", "--json"))["gpus"]
    assert [(card["state"], card["detail"]) for card in shown] == [("external", "bob, pid 8812, 5.0 GiB"), ("free", "")]
    assert "external" in ptq("status")
    box.has({"uuid": "GPU-a"}, {"uuid": "GPU-b"})
    job = box.until(pair, JobState.FINISHED)
    assert job.result is JobResult.SUCCEEDED
    assert sorted(box.spec(job)["gpus"]) == ["GPU-a", "GPU-b"]


def test_a_card_that_a_run_of_another_home_was_just_given_is_left_alone(box: Box, neighbour: Box, ptq: Any) -> None:
    """A driver shows who is on a card once he has made his context there, seconds after he was given it."""
    box.has({"uuid": "GPU-a"})
    [first] = add_jobs(neighbour.registry, behaviour="held", fuse="never")
    neighbour.worker()
    neighbour.until(first, JobState.RUNNING, step=1)
    [second] = add_jobs(box.registry, steps=5)
    box.worker()
    wait_until(lambda: "another PTQ_HOME" in ptq("status"), what="a reason")
    assert get(box.registry, second).attempt == 0
    for worker in neighbour.started:  # the run goes on without its worker, and keeps its card
        worker.kill()
        worker.wait()
    assert "another PTQ_HOME" in ptq("status")
    let_go(neighbour.registry, first)
    assert box.until(second, JobState.FINISHED).result is JobResult.SUCCEEDED


def test_a_worker_whose_log_cannot_be_written_stays_at_work(box: Box) -> None:
    box.has({"uuid": "GPU-a"})
    [job_id] = add_jobs(box.registry, steps=2)

    def full(_: str) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    command = lambda spec, paths: [sys.executable, str(FAKE_TRAINING), str(paths.root)]  # noqa: E731
    slots = GpuSlots(source=gpu_source(load_settings()))
    Worker(box.registry, slots, command=command, log=full).work(until_idle=True)
    assert (get(box.registry, job_id).result, get(box.registry, job_id).attempt) == (JobResult.SUCCEEDED, 1)


def test_who_comes_between_the_plan_and_the_claim_keeps_the_card_and_costs_no_try(box: Box) -> None:
    box.has({"uuid": "GPU-a"})
    [job_id] = add_jobs(box.registry)
    source = gpu_source(load_settings())
    slots = GpuSlots(source=source)
    look, said = slots.look, []

    def bob_comes(held: Any) -> Any:
        found = look(held)
        box.has({"uuid": "GPU-a", "processes": [{"pid": 1, "user": "bob"}]})
        return found

    slots.look = bob_comes  # type: ignore[method-assign]
    worker = Worker(box.registry, slots, log=said.append)
    worker.work(until=lambda: bool(said))
    assert said == ["worker: gpu:GPU-a was free a moment ago: bob, pid 1"]
    job = get(box.registry, job_id)
    assert (job.state, job.attempt, job.run_id) == (JobState.QUEUED, 0, None)
    with box.registry.read() as conn:
        assert runs.live_leases(conn) == []


def test_a_reservation_takes_a_card_through_the_queue_and_gives_it_back(box: Box, ptq: Any) -> None:
    box.has({"uuid": "GPU-a"}, {"uuid": "GPU-b"})
    box.worker()
    said = ptq("reserve", "--gpus", "1", "--for", "2h", "--note", "a notebook")
    assert said == "export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=GPU-a\n"
    [pair] = add_jobs(box.registry, slots=2, steps=5)
    shown = json.loads(ptq("status", "--json"))
    assert [card["state"] for card in shown["gpus"]] == ["reserved", "free"]
    assert "a notebook" in ptq("status")
    assert shown["jobs"][0]["waits"] == "needs 2 GPUs, 1 free, reservation r1 (ada) ends in about 2 h"
    assert ptq("reserve", "--gpus", "2", "--for", "10m", "--no-wait") == "reservation r2\n"
    assert "the largest worker here has 2" in ptq("reserve", "--gpus", "3", code=2)
    assert "not a duration" in ptq("reserve", "--for", "soon", code=2)
    assert "r2" in ptq("status")
    assert ptq("release", "r2", "r1") == "reservation r2 released\nreservation r1 released\n"
    assert box.until(pair, JobState.FINISHED).result is JobResult.SUCCEEDED
    assert "there is no reservation r9" in ptq("release", "r9", code=3)
    with box.registry.read() as conn:
        assert usage.used(conn, half_life=1e9, now=0.0)["ada"] > 0


def test_a_reservation_ends_by_itself(box: Box, ptq: Any) -> None:
    box.worker()
    ptq("reserve", "--for", "1s")
    with box.registry.read() as conn:
        [one] = reservations.unfinished(conn)
    wait_until(lambda: not _unfinished(box), what="its end")
    with box.registry.read() as conn:
        assert reservations.get(conn, one.id).ended_by == "its time is over"
        assert runs.live_leases(conn) == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_whoever_goes_away_while_waiting_leaves_the_line(box: Box, number: signal.Signals) -> None:
    command = [sys.executable, "-P", "-m", "orchestrator.cli.main", "reserve", "--gpus", "1", "--for", "2h"]
    waiting = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: _unfinished(box) != [], what="its place in line")
    waiting.send_signal(number)
    said = waiting.communicate(timeout=30)[1]
    assert waiting.returncode == 128 + number, said
    assert _unfinished(box) == []


def test_run_works_itself_when_the_worker_leaves_that_it_had_waited_for(
    box: Box, ptq: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command: Any = lambda _spec, paths: [sys.executable, str(FAKE_TRAINING), str(paths.root)]  # noqa: E731
    monkeypatch.setattr("orchestrator.dispatch.worker.Worker", partial(Worker, command=command))
    monkeypatch.setattr("orchestrator.cli.run.PATIENCE", 0.5)
    [other] = add_jobs(box.registry)  # and the rows
    with ExitStack() as stack:
        stack.enter_context(worker_lock(box.registry.paths.worker_lock))  # it does nothing for this job, and leaves
        leaves = threading.Timer(1.0, stack.close)
        leaves.start()
        assert "tiny" in ptq("run", str(recipe_file(tmp_path)))
        leaves.join()
    assert get(box.registry, other + 1).result is JobResult.SUCCEEDED
    assert get(box.registry, other).state is JobState.QUEUED


def test_a_signal_at_the_moment_the_cards_come_gives_them_back(
    box: Box, ptq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_one = holding.get

    def comes_just_now(registry: Registry, number: int) -> Any:
        with registry.write() as conn:
            me = runs.Claimant(workers.register(conn, **SOMEBODY), "box", "boot")
            assert reservations.start(conn, number, ["gpu:GPU-a"], me, at=time.time())
        os.kill(os.getpid(), signal.SIGHUP)
        return get_one(registry, number)

    monkeypatch.setattr(holding, "get", comes_just_now)
    assert "reservation r1 released" in ptq("reserve", "--for", "2h", code=128 + signal.SIGHUP)
    assert _unfinished(box) == []
    with box.registry.read() as conn:
        assert runs.live_leases(conn) == []


def _unfinished(box: Box) -> list[Any]:
    with box.registry.read() as conn:
        return list(reservations.unfinished(conn))


def test_pause_and_resume_the_queue_and_single_jobs(box: Box, ptq: Any) -> None:
    assert ptq("pause", "--why", "a new driver").startswith("the queue is paused")
    first, second = add_jobs(box.registry, 2, steps=3, fuse="never")
    assert ptq("pause", str(second)) == f"job {second} paused\n"
    box.worker()
    wait_until(lambda: json.loads(ptq("status", "--json"))["gpus"] != [], what="a worker")
    shown = json.loads(ptq("status", "--json"))
    assert shown["paused"] == "the queue is paused by ada (a new driver): `ptq resume` lets it go on"
    assert shown["jobs"][0]["waits"] == shown["paused"]
    assert ptq("resume") == "the queue goes on\n"
    assert ptq("pause", "queue").startswith("the queue is paused")
    assert ptq("resume", "queue") == "the queue goes on\n"
    assert ptq("resume") == "the queue was not paused\n"
    box.until(first, JobState.FINISHED)
    assert get(box.registry, second).state is JobState.QUEUED
    assert "paused" in ptq("events", str(second))
    assert ptq("resume", str(second)) == f"job {second} resumed\n"
    box.until(second, JobState.FINISHED)


def test_a_job_that_runs_is_not_said_to_be_paused(box: Box, ptq: Any) -> None:
    [job_id] = add_jobs(box.registry)
    with box.registry.write() as conn:
        conn.exec_driver_sql("UPDATE jobs SET state = 'running'")
    said = f"job {job_id} is running and goes on; should it stop, only `ptq resume {job_id}` starts it again\n"
    assert ptq("pause", str(job_id)) == said
    assert ptq("pause", str(job_id)) == ""  # a note on standard error
    assert ptq("resume", str(job_id)) == f"job {job_id} resumed\n"


def test_a_drained_worker_ends_what_runs_and_leaves(box: Box, ptq: Any) -> None:
    [running] = add_jobs(box.registry, behaviour="held")
    worker = box.worker()
    box.until(running, JobState.RUNNING, step=1)
    [waiting] = add_jobs(box.registry, fuse="never")
    assert "leaves when its runs have ended" in ptq("worker", "--drain")
    let_go(box.registry, running)
    said, _ = worker.communicate(timeout=40)
    assert "drained by ada" in said
    assert get(box.registry, running).result is JobResult.SUCCEEDED
    assert get(box.registry, waiting).state is JobState.QUEUED
    assert "no worker is at work" in ptq("worker", "--drain", code=3)


def test_a_drained_worker_does_not_wait_for_a_base_that_it_keeps_warm(box: Box, ptq: Any) -> None:
    [done] = add_jobs(box.registry, steps=2)
    worker = box.worker("warm")
    box.until(done, JobState.FINISHED)
    ptq("worker", "--drain")
    said, _ = worker.communicate(timeout=40)
    assert "its base is no longer kept warm, this box's worker is leaving" in said


def test_turns_a_long_job_makes_room_and_goes_on_where_it_was(box: Box) -> None:
    (box.home / "queue.toml").write_text('turn = "1s"\n')
    [long] = add_jobs(box.registry, behaviour="held", fuse="never", user="ada")
    box.worker()
    box.until(long, JobState.RUNNING, step=10)
    [short] = add_jobs(box.registry, steps=20, fuse="never", user="bob")
    done = box.until(short, JobState.FINISHED)
    let_go(box.registry, long)
    ended = box.until(long, JobState.FINISHED)
    assert (done.result, ended.result) == (JobResult.SUCCEEDED, JobResult.SUCCEEDED)
    assert (ended.attempt, ended.counted_attempts) == (2, 1)
    assert (ended.finished_at or 0) > (done.finished_at or 0)
    with box.registry.read() as conn:
        kinds = [event.kind for event in history.list_events(conn, long)]
        detail = next(e.detail for e in history.list_events(conn, long) if e.kind == "preempting")
    assert kinds == ["queued", "starting", "running", "preempting", "queued", "starting", "running", "finished"]
    assert detail["message"] == f"makes room for job {short} of bob"
    resumed = [json.loads(line) for line in box.registry.paths.job(long).events.read_text().splitlines()]
    steps = [event["step"] for event in resumed if event["kind"] == "metric" and event["split"] == "train"]
    assert steps == sorted(set(steps))  # no step was trained twice


def test_what_can_never_run_is_refused_at_submit(box: Box, ptq: Any, tmp_path: Path) -> None:
    from queue_helpers import recipe_file

    add_jobs(box.registry)  # registers the dataset
    (box.home / "queue.toml").write_text("[quota]\nada = 1\n")
    recipe = str(recipe_file(tmp_path))
    said = ptq("submit", recipe, "--set", "resources.gpus=2", code=2)
    assert "2 slots are asked for, ada may have 1 at once" in said
    (box.home / "queue.toml").write_text("[quota]\nada = many\n")
    assert "queue.toml: not TOML" in ptq("submit", recipe, code=2)
    (box.home / "queue.toml").write_text("quotas = 3\n")
    assert "quotas: no such key" in ptq("submit", recipe, code=2)
    assert "quotas: no such key" in ptq("worker", code=2)
    assert len(json.loads(ptq("status", "--json"))["jobs"]) == 1  # a fault in it hides nothing
    assert get(box.registry, 1).state is JobState.QUEUED
    with pytest.raises(Exception, match="there is no job 2"):
        get(box.registry, 2)


def test_dependencies_on_any_end_and_groups_with_a_cap(box: Box, ptq: Any, tmp_path: Path) -> None:
    from queue_helpers import recipe_file

    [bad] = add_jobs(box.registry, behaviour="nan", steps=9)
    recipe = str(recipe_file(tmp_path))
    assert ptq("submit", recipe, "--after-any", str(bad), "--set", "description=x") == "job 2\n"
    several = ["--set", "train.seeds=[1,2,3]", "--at-once", "1"]
    assert ptq("submit", recipe, *several) == "group g1: jobs 3-5\n"
    with box.registry.read() as conn:
        waiting = {job.id: job for job in waiting_jobs(conn)}
    assert (waiting[2].after, waiting[2].after_any) == ((bad,), {bad})
    assert [waiting[n].at_once for n in (3, 4, 5)] == [1, 1, 1]
    assert "there is no job 77" in ptq("submit", recipe, "--after-any", "77", code=3)


def _untold(box: Box) -> Any:
    with box.registry.read() as conn:
        found = controls.get(conn, controls.UNTOLD)
    return None if found is None else found.value


def test_ctrl_c_detaches_from_a_job_and_leaves_it_alone(box: Box, tmp_path: Path) -> None:
    from queue_helpers import recipe_file

    [other] = add_jobs(box.registry)
    command = [sys.executable, "-P", "-m", "orchestrator.cli.main", "submit", str(recipe_file(tmp_path)), "--wait"]
    waiting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert waiting.stdout is not None
    assert waiting.stderr is not None
    mine = int(waiting.stdout.readline().split()[-1])
    assert "no worker is running here" in waiting.stderr.readline()
    time.sleep(0.5)  # it waits
    waiting.send_signal(signal.SIGINT)
    said = waiting.communicate(timeout=30)[1]
    assert (waiting.returncode, f"job {mine} goes on" in said) == (130, True), said
    assert [get(box.registry, number).state for number in (other, mine)] == [JobState.QUEUED, JobState.QUEUED]


def test_people_are_told_once_by_a_command_and_a_webhook_over_restarts(box: Box, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        script, log = tmp_path / "tell.sh", tmp_path / "told.txt"
        script.write_text(f'#!/bin/sh\ncat >/dev/null\necho "$PTQ_JOB $PTQ_JOB_RESULT $PTQ_JOB_USER" >> "{log}"\n')
        script.chmod(0o755)
        policy = f'[notify]\ncommand = ["{script}"]\nwebhook = "http://127.0.0.1:{server.server_port}/x"\n'
        (box.home / "queue.toml").write_text(policy)
        [good] = add_jobs(box.registry, steps=2)
        worker = box.worker()
        wait_until(lambda: bool(told) and log.exists(), what="the first telling")
        wait_until(lambda: _untold(box) == {}, what="the worker's note of it")
        worker.kill()
        worker.communicate()
        [bad] = add_jobs(box.registry, steps=9, behaviour="nan")
        box.worker()
        wait_until(lambda: len(told) == 2 and log.read_text().count("\n") == 2, what="the second telling")
    finally:
        server.shutdown()
        server.server_close()
    assert [(one["id"], one["result"], one["reason"]) for one in told] == [
        (good, "succeeded", None), (bad, "failed", "nan_loss"),
    ]  # fmt: skip
    assert log.read_text() == f"{good} succeeded ada\n{bad} failed ada\n"
    with box.registry.read() as conn:
        assert controls.get(conn, controls.NOTIFIED) is not None


def test_what_a_shell_completes(box: Box, tmp_path: Path) -> None:
    add_jobs(box.registry, 12)
    with box.registry.write() as conn:
        reservations.add(conn, user="eve", uid=7, slots=1, seconds=60.0, note="", at=5.0)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "one.yaml").touch()
    (tmp_path / "recipes" / "notes.txt").touch()

    def offered(line: str) -> list[str]:
        words = line.split(" ")
        environment = {
            **os.environ,
            "_PTQ_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        }
        command = [sys.executable, "-P", "-m", "orchestrator.cli.main"]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        return done.stdout.split()

    assert offered("ptq cancel 1") == ["12", "11", "10", "1"]
    assert offered("ptq submit recipes/") == ["recipes/one.yaml"]
    assert offered("ptq submit rec") == ["recipes/"]
    assert "demo/prefix-tuning" in offered("ptq recipe copy demo/p")
    assert offered("ptq release ") == ["r1"]


def test_the_service_unit_keeps_runs_when_the_worker_is_restarted(box: Box, ptq: Any) -> None:
    unit = ptq("worker", "--install-service", "--gpus", "0,1")
    assert "\nKillMode=process\n" in unit
    assert f'Environment="PTQ_HOME={box.home}"\n' in unit
    [start] = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert start.endswith('" -P -m orchestrator.cli.main worker --gpus 0,1')
