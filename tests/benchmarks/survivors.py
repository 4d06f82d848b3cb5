"""From `ptq cancel` to the proof that nobody lives, for programs that will not go; and how soon a death is noticed.

make proof-survivors          (two minutes; SURVIVORS_TIMES=1 for a shorter look)
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.report import REPOSITORY, ptq, write_page

sys.path.insert(0, str(REPOSITORY / "tests"))

import unruly
from queue_helpers import FAKE_TRAINING, add_jobs, get, open_registry, wait_until

from orchestrator.cli.output.views import worker_is_here
from orchestrator.paths import read_json
from orchestrator.registry import history, runs
from orchestrator.registry.jobs import Job
from orchestrator.states import JobState

GRACE = 2.0  #: seconds, for PTQ_GRACE: what a program gets for its checkpoint
NOTICED_GOAL = 15.0  #: seconds, from a death until it is known
GONE_GOAL = 5.0  #: seconds, beside the grace
GONE_WORDS = f"gone within the grace and {GONE_GOAL:g} s"
TIMES = int(os.environ.get("SURVIVORS_TIMES", "5"))
WORKER = [sys.executable, str(FAKE_TRAINING.with_name("fake_worker.py")), str(FAKE_TRAINING), "1"]


@dataclass
class Bench:
    home: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.registry = open_registry(self.home)
        os.environ |= {"PTQ_HOME": str(self.home), "PTQ_GRACE": str(GRACE)}

    def worker(self) -> subprocess.Popen[bytes]:
        made = subprocess.Popen(WORKER, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.started.append(made)
        wait_until(lambda: worker_is_here(self.registry), seconds=60)
        return made

    def running(self, behaviour: str) -> Job:
        [job_id] = add_jobs(self.registry, behaviour=behaviour, steps=100_000, fuse="never")
        wait_until(lambda: get(self.registry, job_id).state is JobState.RUNNING, seconds=60)
        return get(self.registry, job_id)

    def cancel(self, behaviour: str) -> tuple[float, float, int]:
        """Seconds from the start of the command to the last death and to the final state; how many there were."""
        job = self.running(behaviour)
        folder = self.registry.paths.run(job.run_id or 0).root
        own = read_json(self.registry.paths.run(job.run_id or 0).supervisor)["pid"]
        if behaviour in unruly.KINDS:
            everybody = unruly.until_all_is_up(folder, behaviour)
        else:
            everybody = unruly.who_works_in(folder)
        began = time.monotonic()
        ptq(self.home, "cancel", str(job.id), capture=True)
        wait_until(lambda: unruly.who_works_in(folder) <= {own}, seconds=60)
        gone = time.monotonic() - began
        wait_until(lambda: get(self.registry, job.id).state is JobState.FINISHED, seconds=60)
        written = time.monotonic() - began
        assert unruly.who_works_in(folder) <= {own}
        wait_until(self._is_free, seconds=5)
        return gone, written, len(everybody) - 1

    def worker_killed(self) -> float:
        """Until `ptq` knows that there is none."""
        worker = self.worker()
        worker.send_signal(signal.SIGKILL)
        began = time.monotonic()
        wait_until(lambda: not worker_is_here(self.registry), seconds=60)
        noticed = time.monotonic() - began
        worker.wait()
        return noticed

    def supervisor_killed(self) -> float:
        """Until the job stands in the queue again, its orphans dead."""
        job = self.running("")
        run = self.registry.paths.run(job.run_id or 0)
        os.kill(read_json(run.supervisor)["pid"], signal.SIGKILL)
        began = time.monotonic()
        wait_until(lambda: self._requeued(job.id), seconds=60)
        noticed = time.monotonic() - began
        ptq(self.home, "cancel", str(job.id), capture=True)
        wait_until(lambda: get(self.registry, job.id).state is JobState.FINISHED, seconds=60)
        return noticed

    def rank_killed(self) -> float:
        job = self.running("")
        run = self.registry.paths.run(job.run_id or 0)
        own = read_json(run.supervisor)["pid"]
        for pid in unruly.who_works_in(run.root) - {own}:
            os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        wait_until(lambda: self._requeued(job.id), seconds=60)
        noticed = time.monotonic() - began
        ptq(self.home, "cancel", str(job.id), capture=True)
        wait_until(lambda: get(self.registry, job.id).state is JobState.FINISHED, seconds=60)
        return noticed

    def _is_free(self) -> bool:
        with self.registry.read() as conn:
            return not runs.live_leases(conn)

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()
        for pid in unruly.who_works_in(self.home):
            os.kill(pid, signal.SIGKILL)
        self.registry.close()

    def _requeued(self, job_id: int) -> bool:
        with self.registry.read() as conn:
            return sum(event.kind == "queued" for event in history.list_events(conn, job_id)) > 1


def main() -> int:
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        try:
            rows.append(_noticed("worker killed", [bench.worker_killed() for _ in range(TIMES)]))
            bench.worker()
            for kind, what in KINDS.items():
                found = [bench.cancel(kind) for _ in range(TIMES)]
                gone, written = ([one[place] for one in found] for place in (0, 1))
                met = max(gone) < GRACE + GONE_GOAL
                rows.append([f"cancel: {what}", found[0][2], *_seconds(gone), *_seconds(written), GONE_WORDS, met])
            others: dict[str, Callable[[], float]] = {
                "supervisor killed": bench.supervisor_killed, "program killed": bench.rank_killed,
            }  # fmt: skip
            for name, measure in others.items():
                rows.append(_noticed(name, [measure() for _ in range(TIMES)]))
        finally:
            bench.close()
    text = f"""
Each {TIMES} times, with PTQ_GRACE={GRACE:g} (the default is 30 s). "Gone": from the start of `ptq cancel` until no
process works in the run's folder any more, seen in /proc and not by ptq's own bookkeeping. "Written": until the
registry says so (after a cancel: the final state; after a death: the job is queued again, or `ptq` says that no worker
is here). Nobody lived when the state was written, in any case. Seconds.
"""
    columns = ["what", "processes", "gone, median", "gone, largest", "written, median", "written, largest"]
    columns += ["goal", "met"]
    shown = [[*row[:-1], "yes" if row[-1] else "**no**"] for row in rows]
    write_page("survivors", "No survivors", "make proof-survivors", text, columns, shown)
    return 0 if all(row[-1] for row in rows) else 1


def _noticed(name: str, seconds: list[float]) -> list[object]:
    return [name, "", "", "", *_seconds(seconds), f"noticed within {NOTICED_GOAL:g} s", max(seconds) < NOTICED_GOAL]


KINDS = {
    "": "a program that checkpoints and leaves",
    "deaf": "ignores TERM",
    "forks": "forks a tree of children, all deaf",
    "daemon": "a daemon: double fork, setsid, empty environment",
    "hung": "waits for a child that is stopped",
    "respawner": "starts a new child for each that dies",
}


def _seconds(values: list[float]) -> list[str]:
    return [f"{statistics.median(values):.2f}", f"{max(values):.2f}"]


if __name__ == "__main__":
    sys.exit(main())
