"""Cards held by a command for as long as it runs, however it ends; on cards that a file stands for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from queue_helpers import FAKE_TRAINING, wait_until

from orchestrator.cli import holding
from orchestrator.cli.main import main
from orchestrator.cli.output.views import worker_is_here
from orchestrator.dispatch import hold
from orchestrator.dispatch.lock import worker_lock
from orchestrator.dispatch.people import MORE, Reservations
from orchestrator.dispatch.running import processes
from orchestrator.dispatch.scheduling.gpus import gpu_source
from orchestrator.registry import controls, reservations, runs, usage, workers
from orchestrator.registry.runs import Claimant
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import load_settings

WORKER = [sys.executable, str(FAKE_TRAINING.with_name("fake_worker.py")), str(FAKE_TRAINING), "gpus"]
PTQ = [sys.executable, "-P", "-m", "orchestrator.cli.main"]
#: What a command sees while it runs: its cards, and what the registry says is held.
LOOK = """
import os, sqlite3, sys
file = sqlite3.connect(sys.argv[1])
held = file.execute("select slot from leases where released_at is null").fetchall()
print(os.environ.get("CUDA_VISIBLE_DEVICES"), held)
file.close()
sys.exit(7)
"""


@pytest.fixture
def registry(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.setenv("PTQ_FAKE_GPUS", str(home.parent / "gpus.json"))
    monkeypatch.setenv("PTQ_USER", "ada")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    has(home, {"uuid": "GPU-a", "processes": [{"pid": 8812, "user": "bob"}]}, {"uuid": "GPU-b"})
    made = Registry.open(load_settings(), create=True)
    made.create()
    yield made
    made.close()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    with ExitStack() as stack:

        def begin(command: list[str]) -> subprocess.Popen[bytes]:
            pipe = subprocess.PIPE
            made = subprocess.Popen(command, stdin=pipe, stderr=pipe, start_new_session=True)
            stack.callback(made.communicate)  # closes what `cat` reads
            stack.callback(made.kill)
            return made

        yield begin


def has(home: Path, *cards: dict[str, Any]) -> None:
    draft = home.parent / "gpus.new"
    draft.write_text(json.dumps(cards))
    draft.replace(home.parent / "gpus.json")


def ptq(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ptq", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def unfinished(registry: Registry) -> list[reservations.Reservation]:
    with registry.read() as conn:
        found = reservations.unfinished(conn)
        assert bool(runs.live_leases(conn)) == any(one.run_id for one in found)
        return found


def test_without_a_worker_a_command_takes_a_free_card_and_gives_it_back(
    registry: Registry, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    database = str(home / "registry.db")
    assert ptq(monkeypatch, "reserve", "--", sys.executable, "-c", LOOK, database) == 7
    said = capfd.readouterr()
    assert said.out == "GPU-b [('gpu:GPU-b',)]\n"
    assert "reservation r1: gpu:GPU-b for as long as this runs" in said.err
    assert "reservation r1 released" in said.err
    assert unfinished(registry) == []
    assert ptq(monkeypatch, "reserve", "--gpus", "2", "--", "true") == 1
    said = capfd.readouterr()
    assert "2 asked for, 1 free (gpu:GPU-a: bob, pid 8812)" in said.err
    assert "try again later, or start `ptq worker --cpu-slots N` for CPU slots" in " ".join(said.err.split())
    assert ptq(monkeypatch, "reserve", "--", "no-such-command") == 3
    assert ptq(monkeypatch, "reserve", "--json", "--", "true") == 2
    with registry.write() as conn:
        controls.put(conn, controls.PAUSED, "a new driver", by="root", at=0.0)
    assert ptq(monkeypatch, "reserve", "--", "true") == 1
    assert "the queue is paused by root" in capfd.readouterr().err
    with registry.read() as conn:
        assert conn.exec_driver_sql("select count(*) from reservations").scalar() == 1


def test_what_a_killed_command_held_is_taken_by_the_next(
    registry: Registry, start: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No worker looks: the next command that wants a card does."""
    killed = start([*PTQ, "reserve", "--", "cat"])
    wait_until(lambda: any(one.run_id for one in unfinished(registry)), what="its card")
    assert ptq(monkeypatch, "status", "--json") == 0
    assert "r1 while its command runs: cat" in capfd.readouterr().out
    with pytest.raises(hold.NoFreeGpu, match="gpu:GPU-b: reserved"):
        hold.take(registry, 1, seconds=60, note="")
    killed.kill()
    killed.wait()
    assert hold.take(registry, 1, seconds=60, note="mine") == 2
    [mine] = unfinished(registry)
    assert mine.note == "mine"


def test_without_a_worker_a_quota_counts_what_is_held_already(
    registry: Registry, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    has(home, {"uuid": "GPU-a"}, {"uuid": "GPU-b"}, {"uuid": "GPU-c"})
    (home / "queue.toml").write_text('[quota]\nada = 2\n[team.nlp]\nmembers = ["ada", "bob"]\nquota = 2\n')
    hold.take(registry, 1, seconds=60, note="")
    assert ptq(monkeypatch, "reserve", "--gpus", "2", "--", "true") == 1
    assert "queue.toml: 2 asked for, ada has 1 of at most 2" in capfd.readouterr().err
    assert ptq(monkeypatch, "reserve", "--", "true") == 0
    with registry.write() as conn:
        conn.exec_driver_sql("update reservations set user = 'bob' where ended_at is null")
    assert ptq(monkeypatch, "reserve", "--gpus", "2", "--", "true") == 1
    assert "team nlp has 1 of at most 2" in capfd.readouterr().err


@pytest.mark.parametrize("waits", [False, True])
def test_the_worker_notices_that_a_command_was_killed(registry: Registry, home: Path, start: Any, waits: bool) -> None:
    bob = [{"pid": 8812, "user": "bob"}] if waits else []
    has(home, {"uuid": "GPU-a"}, {"uuid": "GPU-b", "processes": bob})
    start([*WORKER])
    wait_until(lambda: hold.gives(registry, cards=True), what="a worker")
    command = start([*PTQ, "reserve", "--gpus", "2", "--", "cat"])
    wait_until(lambda: [bool(one.run_id) for one in unfinished(registry)] == [not waits], what="its place")
    [one] = unfinished(registry)
    command.kill()
    wait_until(lambda: unfinished(registry) == [], what="its end")
    with registry.read() as conn:
        assert reservations.get(conn, one.id).ended_by == "its command is gone"
        assert bool(usage.used(conn, half_life=1e9, now=0.0)) is not waits


def test_a_worker_that_is_not_heard_of_is_still_the_worker(
    registry: Registry, home: Path, start: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One look may take longer than its silence is borne, as when it hashes a large base."""
    assert not hold.gives(registry, cards=False)
    has(home, {"uuid": "GPU-a"}, {"uuid": "GPU-b"})
    worker = start([*WORKER])
    wait_until(lambda: hold.gives(registry, cards=True), what="a worker")

    def silence() -> None:
        with registry.write() as conn:
            conn.exec_driver_sql("update workers set heartbeat_at = heartbeat_at - 60")

    silence()
    assert hold.gives(registry, cards=True)
    number = hold.take(registry, 1, seconds=60, note="")  # as a command does that has seen no worker
    silence()
    assert hold.gives(registry, cards=True)
    assert ptq(monkeypatch, "worker", "--drain") == 0
    assert "the worker starts nothing more" in capfd.readouterr().out
    assert not hold.gives(registry, cards=False)
    assert worker.wait(timeout=20) == 0
    with registry.write() as conn:
        assert reservations.end(conn, number, by="ada", at=time.time())


def test_a_worker_without_an_entry_cannot_be_drained(
    registry: Registry, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with worker_lock(home / "worker.lock"):
        assert ptq(monkeypatch, "worker", "--drain") == 3
    assert f"`kill {os.getpid()}`" in capfd.readouterr().err


def test_a_command_in_line_takes_a_free_card_when_the_worker_is_gone(
    registry: Registry, home: Path, start: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(holding, "PATIENCE", 0.0)
    bob = {"processes": [{"pid": 8812, "user": "bob"}]}
    has(home, {"uuid": "GPU-a", **bob}, {"uuid": "GPU-b", **bob})
    worker = start([*WORKER])
    wait_until(lambda: hold.gives(registry, cards=True), what="a worker")

    def change() -> None:
        wait_until(lambda: unfinished(registry) != [], what="its place in line")
        worker.kill()
        worker.wait()
        has(home, {"uuid": "GPU-a", **bob}, {"uuid": "GPU-b"})

    meanwhile = threading.Thread(target=change)
    meanwhile.start()
    assert ptq(monkeypatch, "reserve", "--", sys.executable, "-c", LOOK, str(home / "registry.db")) == 7
    meanwhile.join()
    said = capfd.readouterr()
    assert "GPU-b [('gpu:GPU-b',)]" in said.out
    assert "reservation r2: gpu:GPU-b for as long as this runs" in said.err
    assert unfinished(registry) == []


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (["--", "env", "python3", "-u", "src/train.py", "--api-key=x", "eval.py"], "env train.py"),
        (["--", "/bin/cat"], "cat"),
        (["--", "/bin/cat", "x" * 50 + ".py"], "cat " + "x" * 35 + "…"),
        (["--note", "a person's own " + "x" * 50, "--", "cat"], "a person's own " + "x" * 50),
    ],
)  # fmt: skip
def test_what_a_command_is_shown_as_tells_no_arguments(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, options: list[str], note: str
) -> None:
    """Everybody reads it in `ptq status`."""
    monkeypatch.setattr("orchestrator.cli.reserve._run", lambda *_: 0)
    assert ptq(monkeypatch, "reserve", *options) == 0
    with registry.read() as conn:
        assert reservations.get(conn, 1).note == note


def test_a_reservation_that_is_released_while_it_waits_is_none(
    registry: Registry, start: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In `eval "$(ptq reserve)"` the shell must get nothing to run."""
    waiting = start([*PTQ, "reserve"])
    wait_until(lambda: unfinished(registry) != [], what="its place in line")
    assert ptq(monkeypatch, "release", "r1") == 0
    assert b"reservation r1 was released before it had its GPUs" in waiting.communicate(timeout=30)[1]
    assert waiting.returncode == 3
    assert capfd.readouterr().out == "reservation r1 released\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_asked_to_end_takes_its_child_along(
    registry: Registry, start: Any, number: signal.Signals
) -> None:
    command = start([*PTQ, "reserve", "--", "cat"])
    wait_until(lambda: processes.descendants(command.pid, processes.everyone()) != set(), what="its child")
    if number == signal.SIGINT:
        os.killpg(command.pid, number)  # as a terminal does
    else:
        command.send_signal(number)
    said = command.communicate(timeout=30)[1]
    assert command.returncode == 128 + number, said
    assert b"reservation r1 released" in said
    assert unfinished(registry) == []


def test_a_command_that_lives_keeps_its_card_beyond_what_was_planned(registry: Registry) -> None:
    number = hold.take(registry, 1, seconds=0.0, note="")
    people = Reservations(registry, Claimant(1, "box", "boot"), lambda _: None, lambda _: None, lambda: 1e10)
    people.end_those_that_are_over(half_life=1e9)
    [one] = unfinished(registry)
    assert (one.id, one.seconds, people.hold_slots) == (number, MORE, True)


@pytest.mark.parametrize("by_a_worker", [True, False])
def test_a_command_that_cannot_be_seen_keeps_its_card_for_its_time(registry: Registry, by_a_worker: bool) -> None:
    """It runs in another container: nobody can say whether it lives."""
    began = time.time()
    number = hold.take(registry, 1, seconds=1000.0, note="")
    boot = processes.boot_id()
    with registry.write() as conn:
        conn.exec_driver_sql("update reservations set holder = ?", (f"{boot}/pid:[1]/{os.getpid()}/1",))
    clock = [began + 999.0]
    people = Reservations(registry, Claimant(1, "box", "boot"), lambda _: None, lambda _: None, lambda: clock[0])
    people.end_those_that_are_over(half_life=1e9)
    [one] = unfinished(registry)
    assert (one.id, one.seconds, people.hold_slots) == (number, 1000.0, True)
    if by_a_worker:
        clock[0] += 5000.0
        people.end_those_that_are_over(half_life=1e9)
    else:
        with registry.write() as conn:
            conn.exec_driver_sql("update reservations set started_at = started_at - 6000")
        assert hold.take(registry, 1, seconds=60, note="the next") != number
    with registry.read() as conn:
        assert reservations.get(conn, number).ended_by == "its time is over"


def test_a_killed_command_is_charged_for_no_more_than_was_planned(registry: Registry) -> None:
    """Nobody looks for hours: no worker is here."""
    hold.take(registry, 1, seconds=600.0, note="")
    with registry.write() as conn:
        conn.exec_driver_sql("update reservations set holder = ?", (f"{processes.mark(os.getpid())}1",))  # nobody
    later = time.time() + 36_000
    people = Reservations(registry, Claimant(1, "box", "boot"), lambda _: None, lambda _: None, lambda: later)
    people.end_those_that_are_over(half_life=1e9)
    assert unfinished(registry) == []
    with registry.read() as conn:
        assert usage.used(conn, half_life=1e9, now=later)["ada"] == pytest.approx(600.0, abs=1.0)


def test_a_mark_names_one_process_of_one_boot() -> None:
    mine = processes.mark(os.getpid())
    boot, namespace, pid, started = mine.split("/")
    assert processes.lives(mine) is True
    assert processes.lives(f"{boot}/{namespace}/{pid}/{int(started) + 1}") is False
    assert processes.lives(f"another/{namespace}/{pid}/{started}") is False
    assert processes.lives(f"{boot}/pid:[1]/{pid}/{started}") is None  # another container's: not to be seen from here
    assert processes.lives(f"{boot}//{pid}/{started}") is None  # what hid it then may hide it now


def test_a_command_holds_its_card_against_other_homes(
    registry: Registry, home: Path, tmp_path: Path, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    start([*PTQ, "reserve", "--", "cat"])
    wait_until(lambda: any(one.run_id for one in unfinished(registry)), what="its card")
    settings = load_settings({**os.environ, "PTQ_HOME": str(tmp_path / "neighbour")})
    with closing(Registry.open(settings, create=True)) as theirs:
        wait_until(lambda: any(gpu.given for gpu in gpu_source(theirs.settings).look()), what="its name")
        with pytest.raises(hold.NoFreeGpu, match="gpu:GPU-b: a run of another PTQ_HOME"):
            hold.take(theirs, 1, seconds=60, note="")
        with pytest.raises(hold.NotAllowed, match="a run of another PTQ_HOME"):
            hold.check_granted(theirs, ["GPU-b"])
        with (
            pytest.raises(hold.NoFreeGpu, match="a run of another PTQ_HOME has it"),
            hold.against_other_homes(theirs, ["gpu:GPU-b"]),
        ):
            pytest.fail("it is held")


def test_a_granted_card_must_be_nobody_elses(registry: Registry, home: Path) -> None:
    assert hold.check_granted(registry, ["GPU-b"]) == hold.check_granted(registry, ["1", "0"]) == "gpu:GPU-b"
    assert hold.check_granted(registry, ["MIG-of-some-card"]) is None
    assert hold.check_granted(registry, ["GPU-"]) is None  # of both cards
    has(home, {"uuid": "GPU-a1", "processes": [{"pid": 8812, "user": "bob"}]}, {"uuid": "GPU-b"})
    with pytest.raises(hold.NotAllowed, match="gpu:GPU-a1 is in use"):
        hold.check_granted(registry, ["GPU-a"])
    has(home, {"uuid": "GPU-a", "processes": [{"pid": 8812, "user": "bob"}]}, {"uuid": "GPU-b"})
    for name in ("GPU-a", "0"):
        with pytest.raises(hold.NotAllowed, match="gpu:GPU-a is in use: bob, pid 8812"):
            hold.check_granted(registry, [name])
    hold.take(registry, 1, seconds=60, note="")
    hold.check_granted(registry, ["GPU-b"])  # by my own reservation
    with registry.write() as conn:
        conn.exec_driver_sql("update reservations set uid = uid + 1")
    with pytest.raises(hold.NotAllowed, match="gpu:GPU-b is in use: reserved"):
        hold.check_granted(registry, ["GPU-b"])
    (home.parent / "gpus.json").unlink()
    hold.check_granted(registry, ["GPU-a"])  # no driver: torch will say


def test_a_system_without_proc_queues_and_releases_and_trains_nothing(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """macOS, for one."""
    assert ptq(monkeypatch, "reserve", "--no-wait") == 0
    with registry.write() as conn:  # on a box that shares the registry
        workers.register(conn, host="box", pid=1, pid_started=1, boot_id="b", slots=["gpu:GPU-x"], at=time.time())
    monkeypatch.setattr(processes, "_PROC", tmp_path / "nothing")
    assert worker_is_here(registry)
    assert ptq(monkeypatch, "release", "r1") == 0
    capsys.readouterr()
    for command in (["worker"], ["demo", "--home", str(tmp_path / "demo")]):
        assert ptq(monkeypatch, *command) == 2
        assert "on Linux only: ptq knows their processes by /proc" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
