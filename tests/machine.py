"""A box that breaks in every way we know of, without a single real process: the real worker, the real registry, the
real files of runs and jobs; processes, GPUs, the clock and the boot are simulated.

What is simulated obeys the same files as the real supervisor and training program do. `History` is the state machine
over it, with the invariants that a queue must keep, whatever happens in whatever order.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import shutil
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import fake_training
import sqlalchemy as sa
from fake_training import FakeJob
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from queue_helpers import add_jobs, open_registry

from orchestrator import failpoints
from orchestrator.dispatch import access, control
from orchestrator.dispatch.running import processes, reconcile, requests, start, supervisor
from orchestrator.dispatch.running.supervisor import Exit
from orchestrator.dispatch.scheduling.gpus import Gpu, GpuProcess
from orchestrator.dispatch.scheduling.slots import GpuSlots
from orchestrator.dispatch.worker import Worker
from orchestrator.errors import PtqError, RegistryUnusable, StaleAttempt
from orchestrator.jobspec import RunSpec, close_inbox, take_tickets
from orchestrator.paths import RunPaths, read_json, write_json
from orchestrator.registry import artifacts, jobs, runs
from orchestrator.registry.jobs import Job, Move
from orchestrator.registry.runs import Lease
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import load_settings
from orchestrator.states import LIVE, JobResult, JobState

GPUS = ("GPU-a", "GPU-b", "GPU-c")
STEPS = 3  #: of a job: each is one move of its program
FOREIGN = 100_000  #: pids of processes that are not ours begin here


class Killed(BaseException):
    """SIGKILL: nothing of the process's own code runs any more."""


@dataclass
class Process:
    pid: int
    token: str
    run: RunPaths
    spec: RunSpec
    alive: bool = True
    deaf: bool = False  #: does not mind TERM
    asked: bool = False
    child: Process | None = None  #: of a supervisor: the run's program
    introduced: bool = False
    jobs: list[FakeJob] = field(default_factory=list)  #: of a program
    began: bool = False
    exit_code: int | None = None
    signal: int | None = None


class Machine:
    def __init__(self, home: Path) -> None:
        self.home, self.now, self.boots, self.last_pid = home, 1e9, 0, 10
        self.all: dict[int, Process] = {}
        self.foreign: dict[str, int] = {}  #: GPU -> pid of somebody who works there by hand
        self.deaf = False  #: whether the next program minds TERM
        self.die_at: str | None = None
        self.meanwhile: dict[str, Callable[[], object]] = {}  #: what somebody else does when the worker comes there

    # -- what the code under test sees of it

    def boot_id(self) -> str:
        return f"boot-{self.boots}"

    def clock(self) -> float:
        self.now += 0.1
        return self.now

    def is_alive(self, pid: int, started: float) -> bool:
        return pid in self.all and self.all[pid].alive and started == pid

    def members(self, token: str, *, below: int | None = None) -> set[int]:
        return {one.pid for one in self.all.values() if one.alive and one.token == token}

    def send(self, pids: Collection[int], number: int) -> None:
        for pid in pids:
            if number == signal.SIGKILL:
                self.kill(self.all[pid])

    def kill_until_gone(self, find: Callable[[], set[int]], **_: Any) -> set[int]:
        self.send(find(), signal.SIGKILL)
        return find()

    def spawn(self, run: RunPaths, spec: RunSpec, _command: object, _held: object) -> int:
        return self._born(spec.token, run, spec).pid

    def reach(self, name: str) -> None:
        if self.die_at == name:
            self.die_at = None
            raise Killed(name)
        self.meanwhile.pop(name, lambda: None)()

    def look(self) -> list[Gpu]:
        """The GPUs, as NVML would show them."""
        return [Gpu(index, uuid, "fake", 1 << 34, 0, tuple(self._on(uuid))) for index, uuid in enumerate(GPUS)]

    def _on(self, uuid: str) -> Iterator[GpuProcess]:
        if uuid in self.foreign:
            yield GpuProcess(self.foreign[uuid], "bob", 1 << 30)
        for one in self.programs():
            if uuid in one.spec.gpus:
                yield GpuProcess(one.pid, "ada", 1 << 30)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put it between the code and the real machine."""
        fakes: list[tuple[Any, str, Any]] = [
            (processes, "boot_id", self.boot_id), (processes, "alive", self.is_alive),
            (processes, "members", self.members), (processes, "send", self.send),
            (processes, "kill_until_gone", self.kill_until_gone), (processes, "start_time", lambda pid: pid),
            (start, "spawn_supervisor", self.spawn), (failpoints, "reach", self.reach),
            (reconcile, "GPU_SECONDS", 0.0), (fake_training, "CHECKPOINT_EVERY", 2),
            (access, "owner_of", lambda _paths: os.getuid()),
        ]  # fmt: skip
        with contextlib.ExitStack() as stack:
            for module, name, fake in fakes:
                stack.enter_context(mock.patch.object(module, name, fake))
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            yield

    # -- what happens on it

    def supervisors(self) -> list[Process]:
        return [one for one in self.all.values() if one.alive and not one.began]

    def programs(self) -> list[Process]:
        return [one for one in self.all.values() if one.alive and one.began]

    def kill(self, process: Process) -> None:
        process.alive, process.signal = False, signal.SIGKILL
        for job in process.jobs:
            job.events._file.close()

    def reboot(self) -> None:
        for process in self.all.values():
            if process.alive:
                self.kill(process)
        self.boots += 1
        self.foreign.clear()

    def supervise(self, process: Process) -> None:
        """One move of a supervisor, as `dispatch.running.supervisor` makes it."""
        if not process.introduced:
            process.introduced = supervisor._create(process.run, self._who(process))
            process.alive = process.introduced
        elif process.child is None:
            child = self._born(process.token, process.run, process.spec)
            child.began, child.deaf, process.child = True, self.deaf, child
        elif not process.child.alive:
            self._record(process, process.child)
        elif process.run.stop_request.exists():
            if process.asked:  # the grace is over
                self.kill(process.child)
            process.asked = process.child.asked = True

    def train(self, program: Process) -> None:
        """One move of a run's program, as `training.run` makes it."""
        try:
            self._train(program)
        except (OSError, ValueError):  # its folders are gone
            self._leave(program, 1)

    def _train(self, program: Process) -> None:
        if not program.jobs and program.exit_code is None and not program.asked:
            for folder in [] if program.spec.jobs == [] else program.spec.jobs:
                if not any(str(job.paths.root) == folder for job in program.jobs) and not program.introduced:
                    program.jobs.append(FakeJob.open(folder, 0.0))
            program.introduced = True
        if program.asked and not program.deaf:
            for job in program.jobs:
                job.checkpoint()
                job.leave("stopped", step=job.step, why="asked")
            self._leave(program, 75)
            return
        program.jobs += [FakeJob.open(ticket.folder, 0.0) for ticket in take_tickets(program.run)]
        program.jobs = [job for job in program.jobs if not job.asked_to_leave()]
        program.jobs = [job for job in program.jobs if job.advance()]
        if not program.jobs and close_inbox(program.run):
            self._leave(program, 0)

    def _leave(self, program: Process, code: int) -> None:
        program.alive, program.exit_code, program.jobs = False, code, []

    def _born(self, token: str, run: RunPaths, spec: RunSpec) -> Process:
        self.last_pid += 1
        self.all[self.last_pid] = Process(self.last_pid, token, run, spec)
        return self.all[self.last_pid]

    def _who(self, process: Process) -> dict[str, Any]:
        return {"pid": process.pid, "started": process.pid, "boot_id": self.boot_id(), "uid": os.getuid()}

    def _record(self, process: Process, child: Process) -> None:
        why = read_json(process.run.stop_request)["why"] if process.run.stop_request.exists() else "none"
        record = Exit(child.exit_code, child.signal, why, started_at=self.now, ended_at=self.now, oom_kill=False)
        if process.run.root.is_dir():
            write_json(process.run.exit_record, asdict(record))
        process.alive = False


#: slots, whether it may share a run, how often it is tried
JOBS = st.tuples(st.integers(1, 2), st.booleans(), st.integers(1, 4))

#: Where a worker may be killed within one look.
DEATHS = [name for name in failpoints.NAMES if name.startswith("worker.")]
#: The home that every history begins with; made once in each process.
TEMPLATE: dict[str, Path] = {}


def template(folder: Path) -> Path:
    if "home" not in TEMPLATE:
        home = folder / f"ptq-template-{os.getpid()}"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        atexit.register(forget_template)
        registry = open_registry(home)
        add_jobs(registry, 0)  # its dataset
        registry.close()
        TEMPLATE["home"] = home
    return TEMPLATE["home"]


def forget_template() -> None:
    """At the end of a process; a pool's processes end without it."""
    if "home" in TEMPLATE:
        shutil.rmtree(TEMPLATE.pop("home"), ignore_errors=True)


class History(RuleBasedStateMachine):
    """Everything that people, machines and bad luck do to the queue; after each move the invariants are looked at."""

    folder = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp")  # histories write much and keep nothing

    def __init__(self) -> None:
        super().__init__()
        self.home = self.folder / f"ptq-history-{os.getpid()}"
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(template(self.folder), self.home)
        settings = load_settings({"PTQ_HOME": str(self.home), "PTQ_USER": "ada"})
        self.registry = Registry.open(settings, busy_seconds=0.0)
        self.machine = Machine(self.home)
        self._patches = self.machine.in_place()
        self._patches.__enter__()
        self.worker: Worker | None = None
        self.attempts: dict[int, int] = {}  #: the highest that was ever seen
        self.final: dict[int, tuple[Any, ...]] = {}  #: finished jobs, as they were first seen
        self.limits: dict[int, int] = {}
        self.cancelled: dict[int, int] = {}  #: live jobs that somebody has cancelled -> in which attempt

    @initialize(data=st.data(), rounds=st.integers(0, 5))
    def begin(self, data: st.DataObject, rounds: int) -> None:
        """A history begins somewhere in the life of a few jobs."""
        self._start_worker()
        for slots, fuse, tries in data.draw(st.lists(JOBS, min_size=1, max_size=4)):
            self.submit_one(slots, fuse, tries)
        self.all_goes_well_for_a_while(rounds)

    # -- people

    @rule(job=JOBS)
    def submit(self, job: tuple[int, bool, int]) -> None:
        self.submit_one(*job)

    def submit_one(self, slots: int, fuse: bool, tries: int) -> None:
        how = "always" if fuse else "never"
        ids = add_jobs(self.registry, steps=STEPS, slots=slots, fuse=how, max_attempts=tries)
        self.limits |= dict.fromkeys(ids, tries)

    @precondition(lambda self: self.limits)
    @rule(data=st.data(), late=st.booleans())
    def cancel(self, data: st.DataObject, late: bool) -> None:
        """`late`: whoever cancels is killed between the registry and the run's folder."""
        self.machine.die_at = "cancel.written" if late else None
        with contextlib.suppress(Killed):
            self._cancel(data.draw(st.sampled_from(sorted(self.limits))))
        self.machine.die_at = None

    @precondition(lambda self: self.worker and self.limits)
    @rule(data=st.data())
    def cancel_while_the_worker_writes_an_ending(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.limits)))
        self.machine.meanwhile["worker.settling"] = lambda: self._cancel(job_id)
        self.all_goes_well_for_a_while(4)
        self.machine.meanwhile.clear()

    @precondition(lambda self: self.final)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.final)))
        succeeded = self.final[job_id][0] is JobResult.SUCCEEDED
        try:
            control.retry(self.registry, [str(job_id)], user="ada", now=self.machine.clock())
        except PtqError:
            assert succeeded
            return
        assert not succeeded
        del self.final[job_id]
        self.cancelled.pop(job_id, None)

    @precondition(lambda self: self.machine.supervisors())
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        requests.request_stop(data.draw(st.sampled_from(self.machine.supervisors())).run, "preempt")

    @rule(gpu=st.sampled_from(GPUS))
    def somebody_comes_or_goes(self, gpu: str) -> None:
        if self.machine.foreign.pop(gpu, None) is None:
            self.machine.foreign[gpu] = FOREIGN

    # -- the queue's own parts

    @precondition(lambda self: self.worker)
    @rule()
    def look(self) -> None:
        self._look()

    @precondition(lambda self: self.worker)
    @rule()
    def look_again(self) -> None:
        self._look()

    @precondition(lambda self: self.worker)
    @rule()
    def heartbeat(self) -> None:
        assert self.worker is not None
        self.worker._beat()

    @precondition(lambda self: self.machine.supervisors())
    @rule(data=st.data())
    def supervisor_moves(self, data: st.DataObject) -> None:
        self.machine.supervise(data.draw(st.sampled_from(self.machine.supervisors())))

    @precondition(lambda self: self.machine.programs())
    @rule(data=st.data())
    def program_moves(self, data: st.DataObject) -> None:
        self.machine.train(data.draw(st.sampled_from(self.machine.programs())))

    @precondition(lambda self: self.worker)
    @rule(rounds=st.integers(1, 3))
    def all_goes_well(self, rounds: int) -> None:
        self.all_goes_well_for_a_while(rounds)

    @precondition(lambda self: self.worker)
    @rule(rounds=st.integers(1, 3))
    def all_goes_well_again(self, rounds: int) -> None:
        self.all_goes_well_for_a_while(rounds)

    def all_goes_well_for_a_while(self, rounds: int) -> None:
        for _ in range(rounds):
            self._round()

    # -- bad luck

    @precondition(lambda self: self.worker)
    @rule()
    def worker_killed(self) -> None:
        self.worker = None

    @precondition(lambda self: self.worker)
    @rule(where=st.sampled_from(DEATHS))
    def worker_killed_at(self, where: str) -> None:
        """The next time that it comes there, if it does soon."""
        self.machine.die_at = where
        try:
            self.all_goes_well_for_a_while(4)
        except Killed:
            self.worker = None
        self.machine.die_at = None

    @precondition(lambda self: not self.worker)
    @rule()
    def worker_started(self) -> None:
        self._start_worker()

    @precondition(lambda self: self.machine.supervisors())
    @rule(data=st.data())
    def supervisor_killed(self, data: st.DataObject) -> None:
        self.machine.kill(data.draw(st.sampled_from(self.machine.supervisors())))

    @precondition(lambda self: self.machine.programs())
    @rule(data=st.data())
    def program_killed(self, data: st.DataObject) -> None:
        self.machine.kill(data.draw(st.sampled_from(self.machine.programs())))

    @rule(deaf=st.booleans())
    def programs_mind_term_or_not(self, deaf: bool) -> None:
        self.machine.deaf = deaf

    @rule()
    def reboot(self) -> None:
        self.machine.reboot()
        self.worker = None

    @rule(seconds=st.sampled_from([-1e6, -60.0, 31.0, 3600.0, 1e7]))
    def clock_jumps(self, seconds: float) -> None:
        """Also: leases expire, delays are over, or they are far away."""
        self.machine.now += seconds

    @precondition(lambda self: self.worker)
    @rule(writes=st.integers(0, 3))
    def database_busy(self, writes: int) -> None:
        """Somebody takes the write lock for the rest of a look, when the worker has written so many times."""
        other = Registry.open(self.registry.settings, busy_seconds=0.0)
        with contextlib.ExitStack() as held:
            write, done = self.registry.write, 0

            def or_not() -> Any:
                nonlocal done
                if done == writes:
                    held.enter_context(other.write())
                done += 1
                return write()

            with mock.patch.object(self.registry, "write", or_not), contextlib.suppress(RegistryUnusable):
                self._look()
        other.close()

    @precondition(lambda self: self.machine.programs())
    @rule(data=st.data())
    def folder_removed(self, data: st.DataObject) -> None:
        program = data.draw(st.sampled_from(self.machine.programs()))
        if program.jobs:
            shutil.rmtree(data.draw(st.sampled_from(program.jobs)).paths.root, ignore_errors=True)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def stale_write(self, data: st.DataObject) -> None:
        """Somebody who owned an earlier attempt wakes up and writes."""
        before = {job.id: job for job in self._jobs() if job.attempt > 0}
        if not before:
            return
        job = before[data.draw(st.sampled_from(sorted(before)))]
        over = job.state not in LIVE
        stale = job.attempt if over else job.attempt - 1
        for write in (
            lambda conn: jobs.set_progress(conn, job.id, stale, step=99, steps=99, events_offset=0),
            lambda conn: jobs.move(conn, job.id, job.attempt - 1, Move(JobState.RUNNING), actor="stale", at=0.0),
            lambda conn: jobs.set_run(conn, job.id, stale, 1),
        ):
            try:
                with self.registry.write() as conn:
                    write(conn)
            except StaleAttempt:
                continue
            raise AssertionError("a stale write was taken")
        assert next(one for one in self._jobs() if one.id == job.id) == job

    # -- what must hold, whatever happens

    @invariant()
    def the_queue_keeps_its_word(self) -> None:
        with self.registry.read() as conn:
            leases = runs.live_leases(conn)
            found = jobs.list_jobs(conn)
            kept = [row.job_id for row in conn.execute(sa.select(artifacts.artifacts.c.job_id))]
        self.one_live_owner_per_gpu(leases)
        self.nobody_is_trained_twice_at_once()
        for job in found:
            assert job.state not in LIVE or job.run_id in {lease.run_id for lease in leases}, f"no lease: {job}"
            self.attempts_are_bounded_and_only_grow(job)
            self.one_final_state(job, kept)
        assert len(kept) == len(set(kept))

    def one_live_owner_per_gpu(self, leases: Sequence[Lease]) -> None:
        assert len({lease.slot for lease in leases}) == len(leases)
        held = {lease.slot.removeprefix("gpu:"): lease.run_id for lease in leases}
        users: dict[str, int] = {}
        for program in self.machine.programs():
            for gpu in program.spec.gpus:
                assert held.get(gpu) == program.spec.run, f"{gpu} was freed while run {program.spec.run} lives on it"
                assert users.setdefault(gpu, program.pid) == program.pid, f"two programs on {gpu}"

    def nobody_is_trained_twice_at_once(self) -> None:
        trained = [job.spec.job for program in self.machine.programs() for job in program.jobs]
        assert len(trained) == len(set(trained)), trained

    def attempts_are_bounded_and_only_grow(self, job: Job) -> None:
        assert 0 <= job.counted_attempts <= self.limits[job.id], job
        assert job.attempt >= self.attempts.get(job.id, 0), job
        self.attempts[job.id] = job.attempt
        if job.id in self.cancelled:
            assert job.attempt == self.cancelled[job.id], f"cancelled, and tried again: {job}"
            assert job.state in {JobState.STOPPING, JobState.FINISHED}, job

    def one_final_state(self, job: Job, kept: Sequence[int]) -> None:
        assert (job.state is JobState.FINISHED) == (job.result is not None)
        assert (job.result is JobResult.SUCCEEDED) == (job.id in kept), job
        now = (job.result, job.reason, job.message, job.attempt, job.finished_at, job.step)
        if job.id in self.final:
            assert self.final[job.id] == now, f"{job} had ended as {self.final[job.id]}"
        elif job.state is JobState.FINISHED:
            self.final[job.id] = now

    def teardown(self) -> None:
        """Let everything go well from here on: every job ends, and nothing is left."""
        try:
            self._heal()
        finally:
            self._patches.__exit__(None, None, None)
            self.registry.close()
            shutil.rmtree(self.home, ignore_errors=True)

    def _heal(self) -> None:
        self.machine.foreign.clear()
        for _ in range(300):
            if all(job.state is JobState.FINISHED for job in self._jobs()) and not self.machine.programs():
                break
            self._round()
        for _ in range(3):
            self._round()
        for job in self._jobs():
            assert job.state is JobState.FINISHED, f"lost: {job}"
        self.the_queue_keeps_its_word()
        assert not self.machine.programs()
        with self.registry.read() as conn:
            assert runs.live_leases(conn) == []
        for kept in artifacts.list_artifacts(self.registry):
            assert artifacts.verify(kept) == []

    def _round(self) -> None:
        if self.worker is None:
            self._start_worker()
        self.machine.now += 1.0
        self._look()
        for process in self.machine.supervisors():
            self.machine.supervise(process)
        for process in self.machine.programs():
            self.machine.train(process)

    def _look(self) -> None:
        assert self.worker is not None
        for pid in list(self.worker.runs.children):
            if not self.machine.all[pid].alive:
                self.worker.runs.children.discard(pid)
        self.worker._place_again_at = 0.0
        self.worker.look()

    def _start_worker(self) -> None:
        self.worker = Worker(
            self.registry, GpuSlots(source=self.machine), log=lambda _text: None, clock=self.machine.clock
        )
        self.worker.how = replace(self.worker.how, keep_warm=0.0)
        self.worker._register()
        self.worker.runs.reap = lambda: None  # type: ignore[method-assign]

    def _cancel(self, job_id: int) -> None:
        with self.registry.read() as conn:
            job = jobs.get_job(conn, job_id)
        if job.state in LIVE:
            self.cancelled[job_id] = job.attempt
        control.cancel(self.registry, [str(job_id)], user="ada", now=self.machine.clock())

    def _jobs(self) -> list[Job]:
        with self.registry.read() as conn:
            return jobs.list_jobs(conn)
