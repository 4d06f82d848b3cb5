"""Two hundred jobs that train for real, and everything that runs them killed: at every failpoint, and at random.

make proof-soak          (ten minutes on two quiet cores; SOAK_JOBS=40 for a shorter look)
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.at_work import kept_at_work, try_again_at_once
from tests.benchmarks.report import REPOSITORY, ptq, write_page

sys.path.insert(0, str(REPOSITORY / "tests"))

import unruly
from box import PTQ, Box, runs_module
from queue_helpers import open_registry
from safetensors.numpy import load_file

from orchestrator import failpoints
from orchestrator.events import read_events
from orchestrator.registry import artifacts, jobs, runs
from orchestrator.registry.jobs import Job
from orchestrator.registry.storage.engine import Registry
from orchestrator.states import LIVE, JobResult, JobState

JOBS = int(os.environ.get("SOAK_JOBS", "200"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
AT_RANDOM, CANCELS = 24, 6
STEPS, LONG = 120, 400
EVERY = 60  #: steps, of all jobs together, between two kills; killed faster, nobody would ever come to train
PATIENCE = 60.0  #: seconds to wait for them, or for somebody to reach a failpoint
TRIES = 4  #: of provoking one
MINUTES = 60  #: on a machine that others use too
SEEDS = (1, 2, 3)
CLOSE = 1e-4  #: of the largest number of its tensor: an optimizer divides by small gradients, in single precision
SUPERVISOR, TRAINING = "orchestrator.dispatch.running.supervisor", "orchestrator.training.run"
TASK = {"type": "generate", "input": "the {text}", "target": "{target}", "max_new_tokens": 2}
TRAIN = {"batch_size": 4, "lr": 0.01, "checkpoint_every": 20, "eval_batch_size": 8}
METHOD = {"type": "prompt-tuning", "length": 3}
#: kind of job -> (its part of all jobs, its steps, its resources)
KINDS: dict[str, tuple[float, int, dict[str, object]]] = {
    "shared": (0.70, STEPS, {}),
    "long": (0.15, LONG, {}),
    "alone": (0.10, STEPS, {"fuse": "never"}),
    "pair": (0.05, STEPS, {"gpus": 2, "fuse": "never"}),
}


class Made:
    """A home, and its recipes: each kind with each seed."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True)
        self.home, self.box = home, Box.made(home)
        self.recipes = {
            (kind, number): self.box.recipe(
                f"{kind}-{number}", task=TASK, method=METHOD, train={**TRAIN, "steps": steps, "seeds": [number]},
                resources={**resources, "max_attempts": 100},
            )
            for kind, (_, steps, resources) in KINDS.items() for number in (SEEDS if kind != "pair" else SEEDS[:1])
        }  # fmt: skip

    def submit(self, kinds: list[tuple[str, int]]) -> None:
        self.box.ok("submit", *(self.recipes[one] for one in kinds))

    def prompts(self) -> dict[str, Path]:
        """A job's name -> its prompt. Where a job runs is all that sets `alone` apart from `shared`."""
        registry = open_registry(self.home)
        found = {one.job_name: one.path / "prompt.safetensors" for one in artifacts.list_artifacts(registry)}
        registry.close()
        return found | {f"alone-{number}": found[f"shared-{number}"] for number in SEEDS}


@dataclass
class Soak:
    made: Made
    expected: dict[str, Path]  #: a job's name -> the prompt that it leaves undisturbed
    armed: Path
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))
    killed: Counter[str] = field(default_factory=Counter)
    submitted: int = 0
    cancels: int = 0
    worker: subprocess.Popen[bytes] | None = None
    reached: dict[int, int] = field(default_factory=dict)  #: job -> the furthest step
    largest: float = 0.0  #: difference of a prompt

    def __post_init__(self) -> None:
        self.armed.mkdir()
        self.home = self.made.home
        self.log = self.home.parent / "worker.log"
        os.environ |= {"PTQ_HOME": str(self.home), "PTQ_FAILPOINTS": str(self.armed), "PTQ_GRACE": "5"}
        self.registry: Registry = open_registry(self.home)
        self.deadline = time.monotonic() + 60 * MINUTES

    def work(self) -> None:
        """Feed jobs, kill, wait until something has been trained, and so on until every job has ended."""
        plan: list[Callable[[], None]] = [lambda name=name: self.kill_at(name) for name in failpoints.NAMES]  # type: ignore[misc]
        plan += [self.kill_somebody] * AT_RANDOM + [self.cancel] * CANCELS
        self.chance.shuffle(plan)
        for turn, action in enumerate(plan, start=1):
            self.feed(max(round(JOBS * turn / len(plan)), self.submitted + (not self.unfinished())))
            self.until(lambda: self.jobs_that_run() != [] or not self.unfinished(), "a job that runs")
            action()
            self.wait_for_progress()
            print(f"{turn} of {len(plan)}: {self.submitted} jobs; SIGKILL {dict(self.killed)}", flush=True)
        self.until(lambda: not self.unfinished(), "the end of all jobs")

    def feed(self, wanted: int) -> None:
        names, shares = list(KINDS), [share for share, _, _ in KINDS.values()]
        count = wanted - self.submitted
        kinds = self.chance.choices(names, shares, k=count)
        chosen = [self.chance.choice([one for one in self.made.recipes if one[0] == kind]) for kind in kinds]
        if chosen:
            self.made.submit(chosen)
            self.submitted += count

    def kill_at(self, name: str) -> None:
        """Whoever reaches it next; if need be, something is done that leads there."""
        armed = self.armed / name
        for _ in range(TRIES):
            armed.touch()
            deadline = time.monotonic() + PATIENCE
            if name in {"supervisor.asked", "cancel.written"}:
                self.cancel(alone=name == "supervisor.asked")
            elif name == "worker.joined":
                self.feed(self.submitted + 2)
            while armed.exists() and time.monotonic() < deadline:
                if not self.unfinished():  # it is on the way of a job
                    self.feed(self.submitted + 2)
                self.keep_going()
            if not armed.exists():
                self.killed[f"at {name}"] += 1
                return
        armed.unlink()

    def kill_somebody(self) -> None:
        kind = self.chance.choice(["worker", "supervisor", "program", "program"])
        if kind == "worker":
            victims = [] if self.worker is None else [self.worker.pid]
        else:
            module = SUPERVISOR if kind == "supervisor" else TRAINING
            victims = [one.pid for one in self.made.box.processes() if runs_module(one, module)]
        if victims:
            with suppress(ProcessLookupError):
                os.kill(self.chance.choice(victims), signal.SIGKILL)
                self.killed[f"{kind}, at random"] += 1

    def cancel(self, *, alone: bool = False) -> None:
        """One that runs. `alone`: one that is its run's only job, so that the run is asked to end."""
        if alone:
            self.made.submit([("alone", self.chance.choice(SEEDS))])
            self.submitted += 1
        found: list[int] = []
        while not found and self.unfinished():
            self.keep_going()
            found = [job.id for job in self.jobs_that_run() if job.name.startswith("alone") or not alone]
        if found:
            command = [*PTQ, "cancel", str(self.chance.choice(found))]
            subprocess.run(command, capture_output=True, check=False, timeout=60)
            self.cancels += 1

    def wait_for_progress(self) -> None:
        deadline, before = time.monotonic() + PATIENCE, self.steps_done()
        while self.steps_done() - before < EVERY and time.monotonic() < deadline and self.unfinished():
            self.keep_going()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        while not condition():
            assert time.monotonic() < self.deadline, f"not in {MINUTES} minutes: {what}; {self.unfinished()}"
            self.keep_going()

    def keep_going(self) -> None:
        """A worker is there; and nobody waits minutes for a next try."""
        command = [*PTQ, "worker", "--cpu-slots", "2", "--keep-warm", "5s"]
        self.worker = kept_at_work(self.worker, command, self.log)
        try_again_at_once(self.registry)
        time.sleep(0.2)

    def steps_done(self) -> int:
        """Every step once: those that a killed program does again do not count."""
        with self.registry.read() as conn:
            for job in jobs.list_jobs(conn):
                self.reached[job.id] = max(self.reached.get(job.id, 0), job.step)
        return sum(self.reached.values())

    def unfinished(self) -> list[int]:
        with self.registry.read() as conn:
            states = [state for state in JobState if state is not JobState.FINISHED]
            return [job.id for job in jobs.list_jobs(conn, states=states)]

    def jobs_that_run(self) -> list[Job]:
        with self.registry.read() as conn:
            return [job for job in jobs.list_jobs(conn, states=LIVE) if job.state is JobState.RUNNING]

    def settle(self) -> None:
        """A worker that nobody kills, until it has nothing left to do."""
        self.stop_worker()
        ptq(self.home, "worker", "--cpu-slots", "2", "--until-idle", capture=True)

    def stop_worker(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker.wait()

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
            "succeeded without an artifact, or with one too many": sorted({job.id for job in done} ^ set(kept)),
            "run twice": [job.id for job in found if self.ran_twice(job)],
            "left running": list(unruly.who_works_in(self.home)),
            "slots still leased": list(leases),
            "artifacts that are damaged, or not what an undisturbed job leaves": wrong,
            "failpoints at which nobody was killed": [n for n in failpoints.NAMES if not self.killed[f"at {n}"]],
        }  # fmt: skip

    def is_right(self, artifact: artifacts.Artifact) -> bool:
        ours, theirs = load_file(artifact.path / "prompt.safetensors"), load_file(self.expected[artifact.job_name])
        if list(ours) != list(theirs):
            return False
        apart = max(float(abs(ours[name] - theirs[name]).max() / abs(theirs[name]).max()) for name in ours)
        self.largest = max(self.largest, apart)
        return apart <= CLOSE

    def ran_twice(self, job: Job) -> bool:
        """A try that reports after a later one has begun, or one after the artifact."""
        events, _ = read_events(self.registry.paths.job(job.id).events)
        attempts = [event["attempt"] for event in events]
        ended = [place for place, event in enumerate(events) if event["kind"] == "artifact"]
        after_the_end = bool(ended) and any(event["kind"] == "started" for event in events[ended[0] :])
        return attempts != sorted(attempts) or len(ended) > 1 or after_the_end

    def close(self) -> None:
        self.stop_worker()
        self.registry.close()
        self.made.box.close()


@contextmanager
def stage(folder: Path) -> Iterator[Soak]:
    """What the jobs leave when nobody is killed, then the home of those that are."""
    quiet = Made(folder / "quiet" / "home")
    quiet.submit([one for one in quiet.recipes if one[0] != "alone"])
    ptq(quiet.home, "worker", "--cpu-slots", "2", "--until-idle", capture=True)
    soak = Soak(Made(folder / "loud" / "home"), quiet.prompts(), folder / "armed")
    try:
        yield soak
    finally:
        soak.close()


def main() -> int:
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder, stage(Path(folder)) as soak:
        began = time.monotonic()
        soak.work()
        soak.settle()
        faults, took = soak.faults(), time.monotonic() - began
        with soak.registry.read() as conn:
            found = jobs.list_jobs(conn)
    write(soak, found, faults, took)
    for name, where in faults.items():
        for one in where:
            print(f"{name}: {one}", file=sys.stderr)
    return 1 if any(faults.values()) else 0


def write(soak: Soak, found: list[Job], faults: dict[str, list[object]], took: float) -> None:
    results = Counter(str(job.result) for job in found)
    attempts = Counter(job.attempt for job in found)
    by_name = Counter(job.name.partition("-")[0] for job in found)
    rows: list[list[object]] = [["jobs", len(found)], *([f"… {name}", count] for name, count in results.items())]
    rows += [["tries that the jobs took: " + ", ".join(f"{n} × {tries}" for tries, n in sorted(attempts.items())), ""]]
    rows += [["`ptq cancel`", soak.cancels], ["SIGKILLs in all", sum(soak.killed.values())]]
    rows += [[f"SIGKILL: {name}", count] for name, count in sorted(soak.killed.items())]
    rows += [[f"**{name}**", len(where)] for name, where in faults.items()]
    text = f"""
{len(found)} jobs, submitted little by little with `ptq submit`, run by `ptq worker --cpu-slots 2`. Every one trains a
prompt on a tiny GPT-2 with the real training program, {STEPS} or {LONG} steps ({by_name["shared"] + by_name["long"]}
may share runs, {by_name["alone"]} run alone, {by_name["pair"]} on two processes). Worker, supervisor and ranks are
killed: whoever reaches each named moment of `orchestrator/failpoints.py`, and {AT_RANDOM} times somebody at random;
{EVERY} steps of training lie in between. A few jobs are cancelled; one such command is killed half-way. Then a worker
that nobody kills ends what is left.

Every artifact's hashes are verified, and its prompt is compared with that of the same job in a home where nobody is
killed: the largest difference is {soak.largest:.1e} of the largest number of its tensor ({CLOSE:g} would be a fault;
fused forwards round differently). Seed {SEED}, {took:.0f} s.
"""
    write_page("soak", "Real kills", "make proof-soak", text, ["what", "how many"], rows)


if __name__ == "__main__":
    sys.exit(main())
