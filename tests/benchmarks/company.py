"""A dozen jobs of unlike methods that come and go on one base, through the real queue, while somebody disturbs them.

make proof-company       (four minutes on two quiet cores; COMPANY_SEEDS=7 for one play of one to two minutes)
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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.benchmarks.at_work import kept_at_work, try_again_at_once
from tests.benchmarks.report import REPOSITORY, write_page

sys.path.insert(0, str(REPOSITORY / "tests"))

import every_method
import isolation
from box import Box
from isolation import Difference, difference, precision
from queue_helpers import open_registry
from training_fixtures import KINDS, MadeRun, make_base

from orchestrator.dispatch.running.requests import request_leave
from orchestrator.jobspec import JobSpec, RunSpec
from orchestrator.paths import HomePaths, JobPaths
from orchestrator.registry import jobs, runs
from orchestrator.registry.jobs import Job
from orchestrator.registry.storage.engine import Registry
from orchestrator.states import LIVE, JobResult, JobState, Reason

SEEDS = tuple(int(seed) for seed in os.environ.get("COMPANY_SEEDS", "1,2,3").split(","))
COUNT = 12  #: jobs that are to end well; three more fail, are late, and are cancelled
CLOSE = 1e-9  #: in double precision, of losses and of the largest number of a tensor
TIMES = 10  #: or so many times what rounding does to the job alone: some optimizers divide by next to nothing
MINUTES = 10  #: of one play, on a machine that others use too
STEPS = (40, 200)
SUPERVISOR, WORKER, PROGRAM = "orchestrator.dispatch.running.supervisor", "wide_worker.py", "wide_training.py"
COLUMNS = ["play", "base", "jobs compared", "methods", "most jobs in a run", "disturbances", "tries"]
COLUMNS += ["losses", "prompt", "checkpoints", "**faults**"]
HUGE = 1e307  #: a rate whose sums are infinite


def cast(kind: str, chance: random.Random) -> list[dict[str, Any]]:
    """The dozen, drawn from all methods; then one that goes NaN, one that is out of time, one to be cancelled."""
    chosen = chance.choices([*isolation.mixed(kind), *every_method.every(kind)], k=COUNT)
    made = [_drawn(one, chance, number) for number, one in enumerate(chosen, start=1)]
    plain, _, dropping, *_ = isolation.mixed(kind)
    nan = {**plain, "method": {"type": "prefix-tuning", "length": 2}, "name": "nan"}
    nan["train"] = {**plain["train"], "lr": HUGE, "schedule": "constant", "steps": 5000}
    late = {
        **dropping,
        "train": {**dropping["train"], "steps": 10**6},
        "resources": {"time_limit": "2s"},
        "name": "late",
    }
    unwanted = {**dropping, "train": {**dropping["train"], "steps": 10**6}, "name": "unwanted"}
    return [*made, nan, late, unwanted]


def _drawn(one: dict[str, Any], chance: random.Random, number: int) -> dict[str, Any]:
    """The job with steps, batches, an optimizer and moments of its own; its rate is kept small, for it runs on."""
    made = {**one, "name": f"job-{number}", "resources": {"max_attempts": 100}}
    if "steps" not in one["train"]:
        return made
    train = one["train"] | {
        "steps": chance.randint(*STEPS),
        "batch_size": chance.randint(1, 9),
        "accumulation": chance.choice([1, 1, 2, 3]),
        "lr": min(one["train"]["lr"], chance.choice([0.002, 0.01])),
        "optimizer": chance.choice(["adamw", "adam", "adafactor"]),
        "schedule": chance.choice(["constant", "linear", "cosine"]),
        "warmup": chance.choice([0, 0.1, 5]),
        "clip": chance.choice([None, 0.01, 1.0]),
        "seeds": [chance.randint(1, 99)],
        "checkpoint_every": chance.randint(5, 40),
        "eval_every": chance.choice([None, 15, 30]) if "keep" not in one["train"] else chance.choice([10, 25]),
        "eval_batch_size": chance.randint(1, 9),
    }
    return {**made, "train": train}


@dataclass
class Play:
    """One home, its jobs, and what is done to them."""

    home: Path
    kind: str
    chance: random.Random
    worker: subprocess.Popen[bytes] | None = None
    done: Counter[str] = field(default_factory=Counter)
    shared: int = 0  #: the most jobs that a run was seen with

    def __post_init__(self) -> None:
        self.log = self.home.parent / "worker.log"
        self.box = Box(self.home)
        self.registry: Registry = open_registry(self.home)
        self.paths = HomePaths(self.home)
        self.deadline = time.monotonic() + 60 * MINUTES

    def go(self, recipes: list[str]) -> None:
        """Submit some, disturb somebody, and so on; then wait for all."""
        waiting = list(recipes)
        self.chance.shuffle(waiting)
        self.submit(waiting, 5)
        deeds: list[Callable[[], None]] = [self.kill_program, self.kill_supervisor, self.kill_worker]
        deeds += [self.preempt] * 3 + [self.pause] * 2 + [self.cancel_and_retry] * 2
        self.chance.shuffle(deeds)
        for deed in deeds:
            self.until(lambda: not self.unfinished() or self.running() != [], "a job that runs")
            self.steps_more(self.chance.randint(20, 150))
            deed()
            self.submit(waiting, self.chance.randint(0, 3))
        self.submit(waiting, len(waiting))
        self.until(lambda: "unwanted" in [job.name for job in self.running()], "the job to be cancelled")
        self.steps_more(20)
        self.cancel_unwanted()
        self.until(lambda: not self.unfinished(), "the end of all jobs")
        self.until(lambda: not self.leases(), "the end of the warm run")

    def submit(self, waiting: list[str], count: int) -> None:
        chosen = [waiting.pop() for _ in range(min(count, len(waiting)))]
        if chosen:
            self.box.ok("submit", *chosen)

    def kill_program(self) -> None:
        self.kill("program", [one for one in self.box.processes() if _runs(one, PROGRAM)])

    def kill_supervisor(self) -> None:
        self.kill("supervisor", self.box.processes_of(SUPERVISOR))

    def kill_worker(self) -> None:
        self.kill("worker", [one for one in self.box.processes() if _runs(one, WORKER)])

    def kill(self, who: str, found: list[psutil.Process]) -> None:
        if found:
            with suppress(psutil.Error):
                self.chance.choice(found).send_signal(signal.SIGKILL)
                self.done[f"SIGKILL: {who}"] += 1

    def preempt(self) -> None:
        """As a worker asks one job to make room: it goes on elsewhere."""
        for job in self.some():
            request_leave(self.paths, job, "preempt")
            self.done["asked to make room"] += 1

    def pause(self) -> None:
        for job in self.some():
            self.ptq("pause", str(job.id))
            request_leave(self.paths, job, "preempt")
            self.done["paused and resumed"] += 1
            self.steps_more(20)
            self.ptq("resume", str(job.id))

    def cancel_and_retry(self) -> None:
        for job in self.some():
            self.ptq("cancel", str(job.id))
            self.until(lambda job=job: job.id not in self.unfinished(), f"the end of job {job.id}")  # type: ignore[misc]
            with self.registry.read() as conn:
                result = jobs.get_job(conn, job.id).result
            if result is JobResult.CANCELLED:
                self.box.ok("retry", str(job.id))
                self.done["cancelled and tried again"] += 1

    def cancel_unwanted(self) -> None:
        self.box.ok("cancel", *(str(job.id) for job in self.running() if job.name == "unwanted"))

    def ptq(self, *arguments: str) -> None:
        """What is asked of a job may come too late for it."""
        self.box.run(*arguments)

    def some(self) -> list[Job]:
        """One of the dozen that runs, if any does."""
        found = [job for job in self.running() if job.name.startswith("job")]
        return [self.chance.choice(found)] if found else []

    def steps_more(self, count: int) -> None:
        """Wait until so many steps more are done, of all jobs together."""
        before, deadline = self.steps(), time.monotonic() + 30
        while self.steps() - before < count and time.monotonic() < deadline and self.unfinished():
            self.keep_going()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        while not condition():
            assert time.monotonic() < self.deadline, f"not in {MINUTES} minutes: {what}; {self.unfinished()}"
            self.keep_going()

    def keep_going(self) -> None:
        """A worker is there; and nobody waits minutes for a next try."""
        command = [sys.executable, str(REPOSITORY / "tests" / WORKER)]
        self.worker = kept_at_work(self.worker, command, self.log, PTQ_HOME=str(self.home), PTQ_GRACE="5")
        try_again_at_once(self.registry)
        company = Counter(job.run_id for job in self.running())
        self.shared = max(self.shared, *company.values(), 0)
        time.sleep(0.1)

    def leases(self) -> list[runs.Lease]:
        with self.registry.read() as conn:
            return runs.live_leases(conn)

    def steps(self) -> int:
        with self.registry.read() as conn:
            return sum(job.step for job in jobs.list_jobs(conn))

    def unfinished(self) -> list[int]:
        with self.registry.read() as conn:
            states = [state for state in JobState if state is not JobState.FINISHED]
            return [job.id for job in jobs.list_jobs(conn, states=states)]

    def running(self) -> list[Job]:
        with self.registry.read() as conn:
            return [job for job in jobs.list_jobs(conn, states=LIVE) if job.state is JobState.RUNNING]

    def close(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker.wait()
        self.registry.close()
        self.box.close()


def _runs(process: psutil.Process, script: str) -> bool:
    """Whether it runs the script itself; the launcher has it among its own arguments."""
    try:
        return process.cmdline()[1].endswith(script)
    except (psutil.Error, IndexError):
        return False


@contextmanager
def stage(root: Path, kind: str, base: str, seed: int) -> Iterator[tuple[Play, list[str]]]:
    """A home with a base, rows that all tasks can read, and the recipes of the cast."""
    home = root / "home"
    home.mkdir(parents=True)
    play = Play(home, kind, random.Random(seed))
    try:
        play.box.ok("base", "add", "tiny", str(make_base(root / "base", base)))
        files = []
        for split, count in every_method.SPLITS.items():
            lines = [every_method.as_json(number) for number in range(count)]
            (root / f"{split}.jsonl").write_text("\n".join(lines))
            files.append(f"--{split}={root / split}.jsonl")
        play.box.ok("dataset", "add", "tiny", *files)
        paths = []
        for one in cast(kind, play.chance):
            path = root / f"{one['name']}.yaml"
            path.write_text(yaml.safe_dump(one))
            paths.append(str(path))
        yield play, paths
    finally:
        play.close()


def alone(root: Path, home: HomePaths, job: Job, *, parts: int = 0) -> MadeRun:
    """The same job once more, as the queue gave it to its run, with nobody beside it.

    `parts`: its rows in so many parts, not as many as the recipe says.
    """
    spec = JobSpec.read(home.job(job.id).spec)
    if parts:
        spec = replace(spec, recipe={**spec.recipe, "train": {**spec.recipe["train"], "accumulation": parts}})
    folder = root / f"alone-{job.id}-{parts}"
    paths = JobPaths(folder / "jobs" / "1")
    replace(spec, attempt=1, folder=str(paths.root)).write(paths.spec)
    made = MadeRun(folder, [paths])
    RunSpec(1, "alone", [str(paths.root)], 1, "cpu", [], None, threads=1).write(made.folder.spec)
    assert made.train() == 0
    return made


def rounding(root: Path, home: HomePaths, job: Job, solo: MadeRun) -> float:
    """How far it is from itself, alone both times, with each of its rows worked through by itself."""
    return difference(alone(root, home, job, parts=job.recipe["train"]["batch_size"]), 0, solo).largest


def faults(play: Play, root: Path) -> tuple[list[str], list[tuple[Job, Difference]]]:
    """What must not be; and how far each job that ended well is from itself alone."""
    with play.registry.read() as conn:
        found = jobs.list_jobs(conn)
    wrong: list[str] = []
    compared: list[tuple[Job, Difference]] = []
    expected = {"nan": Reason.NAN_LOSS, "late": Reason.TIMEOUT, "unwanted": Reason.CANCELLED_BY_USER}
    for job in found:
        if job.name in expected:
            if job.reason is not expected[job.name]:
                wrong.append(f"job {job.id}, {job.name}: {job.result}, {job.reason}, {job.message}")
            continue
        if job.result is not JobResult.SUCCEEDED:
            wrong.append(f"job {job.id}: {job.result}, {job.reason}, {job.message}")
            continue
        company, solo = MadeRun(play.home, [play.paths.job(job.id)]), alone(root, play.paths, job)
        try:
            compared.append((job, difference(company, 0, solo, job.attempt)))
        except AssertionError as error:
            wrong.append(f"job {job.id} is another job alone: {error}")
            continue
        apart = compared[-1][1]
        if apart.largest > CLOSE and apart.largest > TIMES * (own := rounding(root, play.paths, job, solo)):
            what = f"{isolation.called(job.recipe)}, {job.recipe['train']['optimizer']['type']}, try {job.attempt}"
            wrong.append(f"job {job.id} is not itself: {apart}, alone {own:.1e}; {what}")
    return wrong, compared


def played(root: Path, seed: int) -> tuple[list[object], list[str]]:
    """One play: a line of the table, and its faults."""
    base = list(KINDS)[seed % len(KINDS)]
    began = time.monotonic()
    with stage(root, KINDS[base], base, seed) as (play, recipes):
        play.go(recipes)
        took = time.monotonic() - began
        with precision("fp64"):
            wrong, compared = faults(play, root)
    methods = len({str(job.method) for job, _ in compared})
    attempts = sum(job.attempt for job, _ in compared)
    losses = max((one.loss for _, one in compared), default=0.0)
    prompts = max((one.prompt for _, one in compared), default=0.0)
    states = max((one.checkpoint for _, one in compared), default=0.0)
    deeds = sum(play.done.values())
    print(f"seed {seed}: {dict(play.done)}, {len(compared)} compared, {took:.0f} s; {wrong}", flush=True)
    line = [
        seed,
        base,
        len(compared),
        methods,
        play.shared,
        deeds,
        attempts,
        *(f"{x:.1e}" for x in (losses, prompts, states)),
    ]
    return [*line, len(wrong)], wrong


def main() -> int:
    os.environ["OMP_NUM_THREADS"] = "1"
    lines, wrong = [], []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            line, faulty = played(Path(folder), seed)
        lines.append(line)
        wrong += [f"seed {seed}: {one}" for one in faulty]
    text = f"""
In each play {COUNT} jobs drawn from all methods and tasks that may share a run, with steps ({STEPS[0]} to {STEPS[1]}),
batches, accumulation, rates, optimizers, schedules, clips, evaluations and checkpoints drawn too, come little by little
through `ptq submit` to a worker with one CPU slot, on a small random base. Beside them one goes NaN, one is out of
time, and one is cancelled. Meanwhile the training program, the supervisor and the worker are killed with SIGKILL, jobs
are asked to make room, paused and resumed, cancelled and tried again. The worker, the supervisors and the command are
the real ones; the training program runs in double precision.

At the end every job of the {COUNT} must have succeeded, the other three must have ended as they should, and each is
trained once more by itself: the same steps, the same checkpoints, the same metrics, and the largest difference of any
loss (relative), and of any number of the prompt and of the checkpoints (relative to the largest of its tensor). A
fault is more than {CLOSE:g}, and more than {TIMES} times what the job alone is from itself with each row worked through
by itself: Adafactor divides by gradients that are next to nothing.
"""
    if "COMPANY_SEEDS" not in os.environ:
        write_page("company", "A dozen jobs that come and go", "make proof-company", text, COLUMNS, lines)
    for one in wrong:
        print(one, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
