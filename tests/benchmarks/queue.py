"""How the queue feels with 100, 10,000 and 100,000 jobs in the registry: submit, claim, start, status, an idle worker.

make proof-queue          (four minutes on two quiet cores; QUEUE_SIZES=100,1000 for a shorter look)
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
import sqlalchemy as sa

from tests.benchmarks.report import REPOSITORY, write_page

sys.path.insert(0, str(REPOSITORY / "tests"))

from queue_helpers import BASE, FAKE_TRAINING, add_jobs, get, open_registry, recipe, wait_until

from orchestrator.cli.output.views import worker_is_here
from orchestrator.dispatch.running import processes
from orchestrator.dispatch.submit import Planned, enqueue
from orchestrator.events import read_events
from orchestrator.registry import runs, workers
from orchestrator.registry.jobs import NewJob
from orchestrator.registry.queue import waiting_jobs
from orchestrator.registry.runs import Claimant
from orchestrator.registry.storage.engine import Registry
from orchestrator.registry.storage.tables import job_events
from orchestrator.registry.storage.tables import jobs as job_table
from orchestrator.settings import child_environment

SIZES = tuple(int(size) for size in os.environ.get("QUEUE_SIZES", "100,10000,100000").split(","))
SUBMITS, CLAIMS, STATUSES, STARTS = 300, 100, 9, 12
IDLE_SECONDS = 20.0
WORKER = [sys.executable, str(FAKE_TRAINING.with_name("fake_worker.py")), str(FAKE_TRAINING)]
#: The command, and at its end the most memory that it had: `wait4` would tell of the process that forked it too.
STATUS = [
    *(sys.executable, "-P", "-c"),
    """import re, sys
from orchestrator.cli.main import main
sys.argv = ["ptq", "status"]
try:
    main()
finally:
    sys.stderr.write(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
""",
]
STATUS_GOAL = 1.5
SUBMIT_GOAL, NOTICED_GOAL = 0.050, 15.0  #: seconds
IDLE_GOAL, IDLE_BYTES_GOAL = 0.01, 100e6


@dataclass
class Figures:
    submit: list[float]
    claim: list[float]
    start: list[float]
    noticed: float  #: on this box
    unheard: float  #: from another one
    status: list[float]
    status_bytes: int
    deep: list[float]  #: `ptq status` with all jobs queued
    idle: float  #: part of a core
    idle_bytes: int


def main() -> int:
    found, load, began = {}, os.getloadavg()[0], time.monotonic()
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            found[size] = measure(Path(folder) / "home", size)
        print(f"{size:,} jobs: measured", flush=True)
    rows = table(list(found.values()))
    missed = [str(row[0]) for row in rows if row[-1] == "**no**"]
    text = (
        "Wall times in milliseconds, as median / 99th percentile. SQLite in WAL mode with `synchronous=FULL`. All but "
        "50 of the jobs have finished; in the row *all queued* they all wait. Submit and claim are transactions; "
        "start is from the end of a job's processes to the first word of the next one's, on one slot, with a program "
        "that loads nothing; a worker is killed with SIGKILL, and noticed when `ptq` says so: on its own box by a lock "
        "that the kernel frees, from another box by its silence; status is the whole command, from the shell and back; "
        "the idle worker has 50 jobs that cannot start. "
        f"Other work on the machine when this began: a load of {load:.1f} on {os.cpu_count()} cores. "
        f"{time.monotonic() - began:.0f} s. " + (f"Missed: {', '.join(missed)}." if missed else "All goals are met.")
    )
    columns = ["jobs in the registry", *(f"{size:,}" for size in SIZES), "goal", "met"]
    write_page("queue", "The queue in figures", "make proof-queue", text, columns, rows)
    print("missed: " + ", ".join(missed) if missed else "all goals met")
    return 1 if missed else 0


def table(found: Sequence[Figures]) -> list[list[str]]:
    """A figure in each row, at each size, with its goal and whether it is met everywhere."""
    ratio = statistics.median(found[-1].status) / statistics.median(found[0].status)
    status = f"at the largest at most {STATUS_GOAL} × at the smallest: {ratio:.2f}"
    return [
        ["submit", *(both(one.submit) for one in found), "99% below 50 ms",
         met(at(one.submit, 0.99) < SUBMIT_GOAL for one in found)],
        ["claim", *(both(one.claim) for one in found), "", ""],
        ["slot free → next process", *(both(one.start) for one in found), "", ""],
        ["dead worker → noticed, on its box", *(f"{one.noticed:.2f} s" for one in found), "below 15 s",
         met(one.noticed < NOTICED_GOAL for one in found)],
        ["dead worker → noticed, from another", *(f"{one.unheard:.2f} s" for one in found), "below 15 s",
         met(one.unheard < NOTICED_GOAL for one in found)],
        ["`ptq status`", *(both(one.status) for one in found), status, met([ratio <= STATUS_GOAL])],
        ["`ptq status`, largest memory", *(f"{one.status_bytes / 1e6:.0f} MB" for one in found), "", ""],
        ["`ptq status`, all queued", *(both(one.deep) for one in found), "", ""],
        ["idle worker", *(f"{100 * one.idle:.2f}% of a core" for one in found), "below 1%",
         met(one.idle < IDLE_GOAL for one in found)],
        ["idle worker, memory", *(f"{one.idle_bytes / 1e6:.0f} MB" for one in found), "below 100 MB",
         met(one.idle_bytes < IDLE_BYTES_GOAL for one in found)],
    ]  # fmt: skip


def met(each: Iterable[bool]) -> str:
    return "yes" if all(each) else "**no**"


def both(seconds: list[float]) -> str:
    return f"{1000 * statistics.median(seconds):.1f} / {1000 * at(seconds, 0.99):.1f}"


def at(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def measure(home: Path, size: int) -> Figures:
    home.mkdir()
    os.environ.update(PTQ_HOME=str(home), PTQ_USER="ada", OMP_NUM_THREADS="1")
    registry = open_registry(home)
    try:
        fill(registry, size)
        submit = [timed(lambda: submit_one(registry)) for _ in range(SUBMITS)]
        claim = claims(registry)
        park(registry, waiting=50)
        status, peak = statuses()
        idle, idle_bytes = idle_worker()
        noticed, unheard = dead_worker(registry)
        start = starts(registry)
        requeue_all(registry)
        deep, _ = statuses()
    finally:
        registry.close()
    return Figures(submit, claim, start, noticed, unheard, status, peak, deep, idle, idle_bytes)


def fill(registry: Registry, size: int) -> None:
    """A history: `size` finished jobs of four users, with their events."""
    [first] = add_jobs(registry)
    with registry.read() as conn:
        model = dict(conn.execute(sa.select(job_table).where(job_table.c.id == first)).one()._mapping)
    now = time.time()
    done = {"state": "finished", "result": "succeeded", "attempt": 1, "counted_attempts": 1, "step": 40, "steps": 40}
    for begin in range(first + 1, first + size, 5000):
        numbers = range(begin, min(begin + 5000, first + size))
        rows = [
            {
                **model,
                **done,
                "id": n,
                "user": f"user{n % 4}",
                "submitted_at": now - 9e6 + n,
                "finished_at": now - 8e6 + n,
            }
            for n in numbers
        ]
        kinds = ("queued", "starting", "running", "finished")
        events = [
            {"job_id": n, "attempt": 1, "at": now - 9e6 + n, "actor": "worker:1", "kind": kind, "detail": {}}
            for n in numbers
            for kind in kinds
        ]
        with registry.write() as conn:
            conn.execute(sa.insert(job_table), rows)
            conn.execute(sa.insert(job_events), events)


def submit_one(registry: Registry) -> None:
    made = NewJob(
        name="one", recipe=recipe(), source="name: one\n", seed=1, method="prompt-tuning", base=BASE,
        dataset_version_id=1, slots=1, priority=50, max_attempts=3,
    )  # fmt: skip
    enqueue(registry, [Planned("one", [made], "rows@1")], user="ada", after=[], command=["ptq"], now=time.time())


def claims(registry: Registry) -> list[float]:
    """Each with its slot, its run and its lease; the run is ended at once, untimed."""
    with registry.write() as conn:
        number = workers.register(conn, host="box", pid=1, pid_started=1, boot_id="b", slots=["cpu:0"], at=1.0)
        waiting = waiting_jobs(conn)[:CLAIMS]
    me, found = Claimant(number, "box", "b"), []
    for job in waiting:
        began = time.perf_counter()
        with registry.write() as conn:
            made = runs.claim(conn, job.id, job.attempt, ["cpu:0"], me, token=uuid.uuid4().hex, at=time.time())
        found.append(time.perf_counter() - began)
        assert made is not None
        with registry.write() as conn:
            runs.end_run(conn, made.run_id, exit_record=None, at=time.time())
    return found


def park(registry: Registry, *, waiting: int) -> None:
    """Everything has finished but so many jobs, which need more slots than there are."""
    over = {"state": "finished", "result": "succeeded", "finished_at": time.time()}
    with registry.write() as conn:
        conn.execute(sa.update(job_table).where(job_table.c.state != "finished").values(over))
        workers.leave(conn, 1, at=1.0)
    add_jobs(registry, waiting, slots=9)


def requeue_all(registry: Registry) -> None:
    waits = {"state": "queued", "result": None, "finished_at": None, "run_id": None, "slots": 9, "attempt": 0}
    with registry.write() as conn:
        conn.execute(sa.update(job_table).values(waits))


def statuses() -> tuple[list[float], int]:
    """Wall times of the command, and the largest memory that it had. The first one warms the disk's cache."""
    times, peak = [], 0
    for _ in range(STATUSES + 1):
        began = time.perf_counter()
        done = subprocess.run(STATUS, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
        times.append(time.perf_counter() - began)
        peak = max(peak, int(done.stderr.split()[-1]) * 1024)
    return times[1:], peak


@contextlib.contextmanager
def worker() -> Iterator[psutil.Process]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*WORKER, "1"], env=child_environment(), **quiet)  # type: ignore[call-overload]
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def dead_worker(registry: Registry) -> tuple[float, float]:
    """Seconds from its SIGKILL until `ptq` knows on the same box, and until another box stops counting on it."""

    def heard_of() -> bool:
        with registry.read() as conn:
            return bool(workers.present(conn, now=time.time()))

    with worker() as process:
        wait_until(lambda: worker_is_here(registry) and heard_of(), seconds=60, what="a worker")
        process.kill()
        began = time.monotonic()
        wait_until(lambda: not worker_is_here(registry), seconds=60, what="its end")
        noticed = time.monotonic() - began
        wait_until(lambda: not heard_of(), seconds=60, what="its silence")
        return noticed, time.monotonic() - began


def idle_worker() -> tuple[float, int]:
    with worker() as process:
        time.sleep(5)  # its start
        before = process.cpu_times()
        began = time.monotonic()
        time.sleep(IDLE_SECONDS)
        after, wall = process.cpu_times(), time.monotonic() - began
        return (after.user + after.system - before.user - before.system) / wall, process.memory_info().rss


def starts(registry: Registry) -> list[float]:
    """From the end of one job's processes to the first word of the next one's training."""
    with registry.write() as conn:
        for job in waiting_jobs(conn):
            conn.execute(sa.update(job_table).where(job_table.c.id == job.id).values(paused_by="ada"))
    ids = add_jobs(registry, STARTS + 1, steps=3, fuse="never")
    with worker():
        wait_until(lambda: get(registry, ids[-1]).result is not None, seconds=120, what="the last job")
    moments = []
    for number in ids:
        run = registry.paths.run(get(registry, number).run_id or 0)
        events, _ = read_events(registry.paths.job(number).events)
        moments.append((next(e["at"] for e in events if e["kind"] == "started"), run.exit_record.stat().st_mtime))
    return [later[0] - earlier[1] for earlier, later in pairwise(moments)]


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


if __name__ == "__main__":
    assert processes.boot_id()
    sys.exit(main())
