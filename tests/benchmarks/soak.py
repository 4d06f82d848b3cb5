"""Two hundred jobs, and everything that runs them killed again and again: at random, and at every failpoint.

make proof-soak          (about eight minutes on two cores; SOAK_JOBS=30 for a shorter look)
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import sqlalchemy as sa

from tests.benchmarks.report import REPOSITORY, ptq, write_page

sys.path.insert(0, str(REPOSITORY / "tests"))

import unruly
from box import Box, runs_module
from queue_helpers import FAKE_TRAINING, add_jobs, open_registry

from orchestrator import failpoints
from orchestrator.events import read_events
from orchestrator.registry import artifacts, jobs, runs
from orchestrator.registry.jobs import Job
from orchestrator.registry.storage.tables import jobs as table
from orchestrator.states import JobResult, JobState

JOBS = int(os.environ.get("SOAK_JOBS", "200"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
REAL_SHARE, GANG_SHARE, CANCEL_SHARE = 0.05, 0.1, 0.04
STEPS = 40  #: of a job that trains nothing: most of a second
EVERY = 40  #: steps, of all jobs together, between two kills; killed faster, a busy machine would never come to train
PATIENCE = 20.0  #: seconds to wait for them
MINUTES = 20
SUPERVISOR, TRAINING = "orchestrator.dispatch.running.supervisor", "orchestrator.training.run"
VALUE = sum(1 / step for step in range(1, STEPS + 1))
RECIPE = {
    "task": {"type": "generate", "input": "the {text}", "target": "{target}", "max_new_tokens": 4},
    "train": {"steps": 300, "batch_size": 4, "lr": 0.01, "checkpoint_every": 50, "eval_batch_size": 8},
    "method": {"type": "prompt-tuning", "length": 3},
    "resources": {"max_attempts": 100},
}


@dataclass
class Soak:
    home: Path
    armed: Path
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))
    killed: Counter[str] = field(default_factory=Counter)
    cancels: int = 0
    worker: subprocess.Popen[bytes] | None = None
    log: Path = Path()
    waiting_for: set[str] = field(default_factory=set)
    reached: dict[int, int] = field(default_factory=dict)  #: job -> the furthest step

    def __post_init__(self) -> None:
        self.armed.mkdir()
        self.log = self.home.parent / "worker.log"
        os.environ |= {"PTQ_HOME": str(self.home), "PTQ_FAILPOINTS": str(self.armed), "OMP_NUM_THREADS": "1"}
        os.environ["PTQ_GRACE"] = "5"
        self.box = Box.made(self.home)
        self.registry = open_registry(self.home)

    def submit(self) -> None:
        real = max(1, round(JOBS * REAL_SHARE))
        recipe = self.box.recipe("real", **RECIPE)
        for _ in range(real):
            self.box.ok("submit", recipe)
        for number in range(JOBS - real):
            slots = 2 if number % round(1 / GANG_SHARE) == 0 else 1
            fuse = "never" if number % 2 else "always"
            add_jobs(self.registry, slots=slots, fuse=fuse, max_attempts=100, steps=STEPS)

    def work(self) -> None:
        """Until every job has ended; kills something every so often, and starts a worker where there is none."""
        points = [name for name in failpoints.NAMES if name != "cancel.written"]
        deadline, turn = time.monotonic() + 60 * MINUTES, 0
        while self.unfinished():
            assert time.monotonic() < deadline, f"not done in {MINUTES} minutes: {self.unfinished()}"
            if self.worker is None or self.worker.poll() is not None:
                self.start_worker()
            turn += 1
            if turn % 2:
                self.kill_somebody()
            else:
                name = points[turn // 2 % len(points)]
                (self.armed / name).touch()
            if self.chance.random() < CANCEL_SHARE:
                self.cancel()
            self.wait_for_progress()
            self.count_reached()
        for path in self.armed.iterdir():
            path.unlink()

    def start_worker(self) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, str(FAKE_TRAINING.with_name("soak_worker.py")), str(FAKE_TRAINING), "3"]
            self.worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill_somebody(self) -> None:
        kind = self.chance.choice(["worker", "supervisor", "program", "program"])
        if kind == "worker":
            victims = [] if self.worker is None else [self.worker.pid]
        else:
            victims = [one.pid for one in self.box.processes() if self.is_a(one, kind)]
        if victims:
            try:
                os.kill(self.chance.choice(victims), signal.SIGKILL)
            except ProcessLookupError:
                return
            self.killed[f"{kind}, at random"] += 1

    def is_a(self, process: psutil.Process, kind: str) -> bool:
        if kind == "supervisor":
            return runs_module(process, SUPERVISOR)
        try:
            fake = len(process.cmdline()) > 1 and process.cmdline()[1] == str(FAKE_TRAINING)
        except psutil.Error:
            return False
        return fake or runs_module(process, TRAINING)

    def cancel(self) -> None:
        """Half of those who cancel are killed between the registry and the run's folder."""
        if self.chance.random() < 0.5:
            (self.armed / "cancel.written").touch()
        job = self.chance.choice(self.unfinished())
        command = [sys.executable, "-P", "-m", "orchestrator.cli.main", "cancel", str(job)]
        subprocess.run(command, capture_output=True, check=False, timeout=60)
        self.cancels += 1

    def wait_for_progress(self) -> None:
        deadline, before = time.monotonic() + PATIENCE, self.steps_done()
        while self.steps_done() - before < EVERY and time.monotonic() < deadline and self.unfinished():
            if self.worker is None or self.worker.poll() is not None:
                self.start_worker()
            self.hurry()
            time.sleep(0.2)

    def steps_done(self) -> int:
        """Every step once: those that a killed program does again do not count."""
        with self.registry.read() as conn:
            for job in jobs.list_jobs(conn):
                self.reached[job.id] = max(self.reached.get(job.id, 0), job.step)
        return sum(self.reached.values())

    def hurry(self) -> None:
        """The pause before a job's next try grows to minutes when everything is killed all the time."""
        with self.registry.write() as conn:
            conn.execute(sa.update(table).where(table.c.not_before.is_not(None)).values(not_before=time.time()))

    def count_reached(self) -> None:
        there = {path.name for path in self.armed.iterdir()}
        for name in self.waiting_for - there:
            self.killed[name] += 1
        self.waiting_for = there

    def unfinished(self) -> list[int]:
        with self.registry.read() as conn:
            states = [state for state in JobState if state is not JobState.FINISHED]
            return [job.id for job in jobs.list_jobs(conn, states=states)]

    def settle(self) -> None:
        """A worker that nobody kills, until it has nothing left to do."""
        if self.worker is not None:
            self.worker.kill()
            self.worker.wait()
        ptq(self.home, "worker", "--cpu-slots", "3", "--until-idle", capture=True)

    def faults(self) -> dict[str, list[object]]:
        """What must not be, and where it is."""
        with self.registry.read() as conn:
            found, leases = jobs.list_jobs(conn), runs.live_leases(conn)
        kept = {one.job_id: one for one in artifacts.list_artifacts(self.registry)}
        done = [job for job in found if job.result is JobResult.SUCCEEDED]
        wrong = [one.job_id for one in kept.values() if artifacts.verify(one) or not self.is_right(one)]
        return {
            "lost (neither succeeded nor cancelled)": [
                (job.id, job.state, job.reason, job.message)
                for job in found if job.result not in {JobResult.SUCCEEDED, JobResult.CANCELLED}
            ],
            "succeeded without an artifact, or with one too many": [job.id for job in done if job.id not in kept],
            "run twice": [job.id for job in found if self.ran_twice(job)],
            "left running": list(unruly.who_works_in(self.home)),
            "slots still leased": list(leases),
            "artifacts that are damaged, or not what an undisturbed job leaves": wrong,
        }  # fmt: skip

    def is_right(self, artifact: artifacts.Artifact) -> bool:
        if artifact.job_name == "real":
            return True  # `make test` compares them bit by bit, tests/acceptance/test_kills.py
        return abs(float((artifact.path / "prompt.safetensors").read_text()) - VALUE) < 1e-9

    def ran_twice(self, job: Job) -> bool:
        """A try that reports after a later one has begun, or one after the artifact."""
        events, _ = read_events(self.registry.paths.job(job.id).events)
        attempts = [event["attempt"] for event in events]
        ended = [place for place, event in enumerate(events) if event["kind"] == "artifact"]
        after_the_end = bool(ended) and any(event["kind"] == "started" for event in events[ended[0] :])
        return attempts != sorted(attempts) or len(ended) > 1 or after_the_end


def main() -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "home").mkdir()
        soak = Soak(Path(folder) / "home", Path(folder) / "armed")
        try:
            soak.submit()
            soak.work()
            soak.settle()
            faults = soak.faults()
            with soak.registry.read() as conn:
                found = jobs.list_jobs(conn)
        finally:
            if soak.worker is not None:
                soak.worker.kill()
                soak.worker.wait()
            soak.box.close()
            soak.registry.close()
    results = Counter(str(job.result) for job in found)
    attempts = Counter(job.attempt for job in found)
    names = [name for name in failpoints.NAMES if not soak.killed[name]]
    rows: list[list[object]] = [["jobs", sum(results.values())], *([f"… {name}", n] for name, n in results.items())]
    rows += [["tries that the jobs took: " + ", ".join(f"{n} × {tries}" for tries, n in sorted(attempts.items())), ""]]
    rows += [["`ptq cancel`", soak.cancels]]
    rows += [[f"SIGKILL: {name}", count] for name, count in sorted(soak.killed.items())]
    rows += [[f"**{name}**", len(where)] for name, where in faults.items()]
    text = f"""
{JOBS} jobs on three CPU slots ({REAL_SHARE:.0%} train a tiny model for real, the others keep to the training program's
contract and sum a series whose value shows a wrong resume; a tenth need two slots, half may share runs). After every
{EVERY} steps of all jobs together somebody is killed: worker, supervisor or program at random, then whoever reaches
the next failpoint. A few jobs are cancelled, by commands of which half are killed too. Seed {SEED}, in all
{time.monotonic() - began:.0f} s. Failpoints not reached: {", ".join(names) or "none"}.
"""
    write_page("soak", "Real kills", "make proof-soak", text, ["what", "how many"], rows)
    for name, where in faults.items():
        for one in where:
            print(f"{name}: {one}", file=sys.stderr)
    return 1 if any(faults.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
