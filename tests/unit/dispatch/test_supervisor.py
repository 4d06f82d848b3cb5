"""The supervisor, with real processes that misbehave."""

from __future__ import annotations

import os
import signal
import stat
import sys
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from queue_helpers import wait_until

from orchestrator.dispatch.running import limits, processes
from orchestrator.dispatch.running.requests import request_stop
from orchestrator.dispatch.running.start import spawn_supervisor
from orchestrator.dispatch.running.supervisor import give_up
from orchestrator.jobspec import RunSpec, Ticket
from orchestrator.paths import RunPaths, read_json, set_aside, write_json


class Case:
    """A run folder and its supervisor."""

    def __init__(self, folder: Path) -> None:
        self.paths = RunPaths(folder)
        self.token = uuid.uuid4().hex
        self.pid = 0

    def start(self, command: list[str], *, grace: float = 0.5, limit: float | None = None) -> None:
        spec = RunSpec(
            run=1, token=self.token, jobs=[], processes=1, device="cpu", gpus=[], zero=None,
            grace_seconds=grace, time_limit_seconds=limit,
        )  # fmt: skip
        spec.write(self.paths.spec)
        self.pid = spawn_supervisor(self.paths, spec, command)

    def python(self, code: str, **options: Any) -> None:
        self.start([sys.executable, "-c", code], **options)

    def record(self) -> dict[str, Any]:
        wait_until(self.paths.exit_record.exists, what=f"exit record; log: {self.log()}")
        assert processes.members(self.token) - {self.pid} == set()
        return dict(read_json(self.paths.exit_record))

    def log(self) -> str:
        return self.paths.log.read_text() if self.paths.log.exists() else ""

    def says(self, text: str, times: int = 1) -> None:
        wait_until(lambda: self.log().count(text) >= times, what=f"{text} in {self.log()!r}")


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    made = Case(tmp_path / "runs" / "it's 1")
    made.paths.root.mkdir(parents=True)
    yield made
    processes.kill_until_gone(lambda: processes.members(made.token), timeout=10)
    if made.pid:
        os.waitpid(made.pid, 0)


#: Ignores TERM, forks, and leaves a daemon in a session of its own with an empty environment.
DEAF = """
import os, signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("daemon", os.getpid(), flush=True)
        os.execve("/bin/sleep", ["sleep", "1000"], {})
    os._exit(0)
os.fork()
print("up", flush=True)
time.sleep(1000)
"""


def test_a_program_that_ends_well(case: Case) -> None:
    case.python("import os; print('token', os.environ['PTQ_RUN'], os.getcwd())")
    record = case.record()
    assert (record["exit_code"], record["signal"], record["why"], record["survivors"]) == (0, None, "none", [])
    assert record["started_at"] <= record["ended_at"]
    assert f"token {case.token} {case.paths.root}" in case.log()
    who = read_json(case.paths.supervisor)
    assert (who["pid"], who["session"], who["boot_id"]) == (case.pid, case.pid, processes.boot_id())
    assert case.paths.heartbeat.exists()


def test_the_kernel_would_rather_kill_the_program_than_its_supervisor(case: Case) -> None:
    case.python("import time; time.sleep(0.2); print('offered', open('/proc/self/oom_score_adj').read(), flush=True)")
    case.record()
    assert "offered 500" in case.log()


def test_the_exit_code_is_the_programs(case: Case) -> None:
    case.python("raise SystemExit(3)")
    assert case.record()["exit_code"] == 3


def test_cancel_leaves_nobody(case: Case) -> None:
    case.python(DEAF)
    case.says("up", 2)
    case.says("daemon")
    daemon = int(case.log().split("daemon ")[1].split()[0])
    started = processes.start_time(daemon)
    request_stop(case.paths)
    record = case.record()
    assert (record["why"], record["signal"], record["survivors"]) == ("cancel", signal.SIGKILL, [])
    assert not processes.alive(daemon, started)


def test_a_daemon_does_not_outlive_a_program_that_ended_well(case: Case) -> None:
    case.python("import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True)")
    assert case.record()["exit_code"] == 0


def test_the_time_limit_asks_before_it_kills(case: Case) -> None:
    leave = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))"
    case.python(f"import signal, sys, time; {leave}; time.sleep(1000)", grace=30, limit=0.7)
    record = case.record()
    assert (record["why"], record["exit_code"]) == ("timeout", 75)


def test_term_to_the_supervisor_is_a_wish_to_make_room(case: Case) -> None:
    case.python("import time; print('up', flush=True); time.sleep(1000)")
    case.says("up")
    os.kill(case.pid, signal.SIGTERM)
    assert case.record()["why"] == "preempt"


def test_ranks_do_not_outlive_a_killed_launcher(case: Case) -> None:
    case.python("import subprocess, time; subprocess.Popen(['sleep', '999']); print('up', flush=True); time.sleep(999)")
    case.says("up")
    launcher = min(processes.members(case.token) - {case.pid})
    os.kill(launcher, signal.SIGKILL)
    record = case.record()
    assert (record["why"], record["signal"], record["exit_code"]) == ("none", signal.SIGKILL, None)


def test_a_program_that_is_not_there(case: Case) -> None:
    case.start(["/no/such/program"])
    record = case.record()
    assert (record["why"], record["exit_code"]) == ("launch", None)
    assert "FileNotFoundError" in record["message"]


def test_what_a_killed_supervisor_leaves_is_found_by_its_token(case: Case) -> None:
    case.python("import subprocess, time; subprocess.Popen(['setsid', 'sleep', '999']); print('up'); time.sleep(999)")
    wait_until(lambda: len(processes.members(case.token)) == 3, what="three processes")
    os.kill(case.pid, signal.SIGKILL)
    wait_until(lambda: len(processes.members(case.token)) == 2, what="the supervisor's end")
    assert processes.kill_until_gone(lambda: processes.members(case.token), timeout=10) == set()
    assert not case.paths.exit_record.exists()


def test_a_supervisor_whose_folder_is_another_runs_now_ends_its_own_and_writes_nothing_there(case: Case) -> None:
    """An older registry was put back, and its worker has set the folder aside."""
    case.python("import time; print('up', flush=True); time.sleep(1000)")
    case.says("up")
    others = RunPaths(case.paths.root.with_name("next"))
    write_json(others.spec, {"token": "another"})
    away = set_aside(case.paths.root)
    others.root.rename(case.paths.root)
    wait_until(lambda: processes.members(case.token) == set(), what="its end")
    assert not case.paths.exit_record.exists()
    assert not RunPaths(away).exit_record.exists()


def test_a_run_that_was_given_up_starts_nothing(case: Case) -> None:
    assert give_up(case.paths)
    case.python("print('alive')")
    wait_until(lambda: "given up" in case.log())
    wait_until(lambda: not processes.alive(case.pid, 0) and processes.members(case.token) == set())
    assert "alive" not in case.log()
    assert not give_up(case.paths)


#: bash's own -m lets a process look like `python -m orchestrator.training.run`; the script has that name.
RANK = """
trap 'echo "rank TERM"; exit 75' TERM
(trap 'echo "loader TERM"; exit 1' TERM; echo up; while :; do sleep 0.05; done) &
while :; do sleep 0.05; done
"""
LAUNCHER = """
import signal, subprocess
signal.signal(signal.SIGTERM, lambda *_: print("launcher TERM", flush=True))
ranks = [subprocess.Popen(["bash", "-c", "exec -a python3 bash -m orchestrator.training.run 1"]) for _ in range(2)]
print("codes", [rank.wait() for rank in ranks], flush=True)
raise SystemExit(1)
"""


def test_the_ranks_are_asked_and_neither_their_launcher_nor_their_helpers(case: Case) -> None:
    script = case.paths.root / "orchestrator.training.run"
    script.write_text(RANK)
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    case.python(LAUNCHER, grace=5)
    case.says("up", 2)
    request_stop(case.paths)
    record = case.record()
    assert (record["why"], record["exit_code"]) == ("cancel", 1)
    log = case.log()
    assert log.count("rank TERM") == 2
    assert "launcher TERM" not in log
    before_their_end = log.partition("codes")[0]
    assert "loader TERM" not in before_their_end
    assert "codes [75, 75]" in log


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("/env/bin/python3.11 -u -m orchestrator.training.run /runs/1", "orchestrator.training.run"),
        ("python -X dev -m orchestrator.training.run", "orchestrator.training.run"),
        ("python -m accelerate.cli launch -m orchestrator.training.run", "accelerate.cli"),
        ("python /env/bin/accelerate launch -m orchestrator.training.run /runs/1", None),
        ("python", None),
        ("sleep -m orchestrator.training.run", None),
    ],
)  # fmt: skip
def test_which_module_a_command_line_runs(line: str, module: str | None) -> None:
    assert processes.python_module(line.split()) == module


def test_a_recycled_pid_is_another_process() -> None:
    own = processes.start_time(os.getpid())
    assert processes.alive(os.getpid(), own)
    assert not processes.alive(os.getpid(), own - 1)


def test_a_zombie_is_dead() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    wait_until(lambda: (seen := processes.look(pid)) is not None and seen.dead)
    assert not processes.alive(pid, processes.start_time(pid))
    os.waitpid(pid, 0)
    assert processes.look(pid) is None


def test_the_runs_time_is_that_of_its_longest_job_and_none_when_one_has_no_limit(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    spec = RunSpec(1, "t", [], 1, "cpu", [], None, grace_seconds=5, time_limit_seconds=10, fuse_key="k")
    limit = limits.TimeLimit(case.paths, spec)
    case.paths.joined.mkdir()

    def joins(job: int, seconds: float | None) -> None:
        write_json(case.paths.joined / f"{job}-1.json", asdict(Ticket(job, 1, "/jobs/1", seconds)))

    def over_at(*times: float) -> list[bool]:
        return [(now.__setitem__(0, at), limit.over())[1] for at in times]

    assert over_at(114.9, 115.1) == [False, True]
    now[0] = 110.0
    joins(2, 20.0)
    assert over_at(110.0, 134.9, 135.1) == [False, False, True]
    joins(3, 1.0)  # shorter than what is left: nothing changes
    assert over_at(110.0, 134.9, 141.2) == [False, False, True]
    joins(4, None)
    assert over_at(10_000.0) == [False]
