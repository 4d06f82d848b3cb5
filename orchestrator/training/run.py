"""The program of a run: train the run's jobs on one frozen base.

    accelerate launch … -m orchestrator.training.run RUN_FOLDER

Reads RUN_FOLDER/run.json and each job's job.json; appends to each job's events.jsonl. Exit codes: 0 every job left a
complete artifact, 1 a job failed (its event says why), 75 left at a step boundary because SIGTERM asked for it.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from transformers.utils import logging as transformers_logging

from orchestrator.errors import BadData, BadInput, BadRecipe, PtqError
from orchestrator.events import EventWriter, NoEvents
from orchestrator.jobspec import JobSpec, RunSpec
from orchestrator.paths import JobPaths, RunPaths
from orchestrator.recipe.schema import JobRecipe
from orchestrator.settings import load_settings
from orchestrator.states import Reason
from orchestrator.training.distributed import Processes, join, place
from orchestrator.training.finish import finish
from orchestrator.training.job import TrainedJob
from orchestrator.training.loop import JobFailed, Loop
from orchestrator.training.stop import STOPPED_EXIT_CODE, StopFlag, StopRequested
from orchestrator.tuning.host import BaseHost, Kind
from orchestrator.weights import fingerprint

Events = EventWriter | NoEvents


def main(arguments: Sequence[str]) -> int:
    run = RunSpec.read(RunPaths(Path(arguments[0])).spec)
    torch.set_num_threads(run.threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    processes = join(device=run.device, processes=run.processes, zero=run.zero)
    specs = [JobSpec.read(JobPaths(Path(folder)).spec) for folder in run.jobs]
    try:
        return Run(processes, specs).train()
    finally:
        processes.close()


class Run:
    """The jobs of one run, their event files, and how each ended."""

    def __init__(self, processes: Processes, specs: Sequence[JobSpec]) -> None:
        self.processes = processes
        self.specs = specs
        self.stop = StopFlag(processes)
        self.failed: set[int] = set()
        self.succeeded: set[int] = set()
        self._events: dict[int, Events] = {spec.job: self._open_events(spec) for spec in specs}

    def train(self) -> int:
        try:
            self._train()
        except StopRequested:
            return STOPPED_EXIT_CODE
        except Exception as error:
            self._fail_all(error)
        finally:
            for events in self._events.values():
                with _even_on_a_full_disk():
                    events.close()
        return 1 if self.failed else 0

    def _train(self) -> None:
        host = self._load_base()
        checksum = host.checksum()
        jobs = [job for spec in self.specs if (job := self._open(spec, host)) is not None]

        def on_trained(job: TrainedJob) -> None:
            if any(self.processes.gather(host.checksum() != checksum)):
                what = "a weight of the frozen base moved in training; the artifact was not written"
                raise JobFailed(Reason.BASE_CHANGED, what)
            finish(host, job, self.processes, self.stop)
            self.succeeded.add(job.spec.job)

        try:
            Loop(host, self.processes, self.stop, on_failed=self._on_failed, on_trained=on_trained).run(jobs)
        except StopRequested:
            for job in jobs:
                if job.spec.job not in self.failed | self.succeeded:
                    job.events.write("stopped", step=job.step, why="asked")
            raise

    def _load_base(self) -> BaseHost:
        base = self.specs[0].base
        recipe = JobRecipe.model_validate(self.specs[0].recipe)
        found = self.processes.gather(fingerprint(Path(base.path)) if self.processes.first else base.fingerprint)[0]
        if found != base.fingerprint:
            raise JobFailed(
                Reason.BASE_CHANGED,
                f"the weights in {base.path} are not those of submission ({found} instead of {base.fingerprint}); "
                "add the base again with `ptq base add` and submit again",
            )
        host = BaseHost.load(
            Path(base.path),
            kind=cast(Kind, base.kind),
            dtype=recipe.base.dtype,
            trust_remote_code=recipe.base.trust_remote_code and load_settings().allow_remote_code,
        )
        place(host, self.processes)
        return host

    def _open(self, spec: JobSpec, host: BaseHost) -> TrainedJob | None:
        events = self._events[spec.job]
        try:
            self._check_base(spec)
            job = TrainedJob.open(spec, host, events, device=self.processes.device)
            self.processes.same_everywhere(job.parameters)
            events.write(
                "started",
                processes=self.processes.world,
                device=str(self.processes.device),
                resumed_from=job.resumed_from,
                steps=job.steps,
            )
            events.flush()
        except Exception as error:
            # Several ranks go on only after what all of them meet: faults of recipe and data.
            if self.processes.world > 1 and not isinstance(error, PtqError):
                raise
            self._report_failure(spec, error)
            return None
        what = f"{job.recipe.method.type}, {job.method.length} virtual tokens"
        print(f"job {spec.job}: step {job.step} of {job.steps}, {what}", flush=True)
        return job

    def _check_base(self, spec: JobSpec) -> None:
        """The run's one base was loaded as the first job asks for it."""
        first = self.specs[0]
        loaded = (first.base.fingerprint, first.base.kind, first.recipe["base"]["dtype"])
        wanted = (spec.base.fingerprint, spec.base.kind, spec.recipe["base"]["dtype"])
        if wanted != loaded:
            raise BadRecipe(f"this run has loaded another base ({loaded} instead of {wanted})", where="base")

    def _on_failed(self, job: TrainedJob, error: Exception) -> None:
        self._report_failure(job.spec, error)

    def _fail_all(self, error: Exception) -> None:
        """An error that is no single job's: out of memory, a full disk, a fault of ours."""
        for spec in self.specs:
            if spec.job not in self.failed | self.succeeded:
                self._report_failure(spec, error)

    def _report_failure(self, spec: JobSpec, error: Exception) -> None:
        self.failed.add(spec.job)
        reason = reason_of(error)
        if reason is Reason.CRASHED:
            traceback.print_exception(error)
        message = str(error) or type(error).__name__
        print(f"job {spec.job} failed ({reason}): {message}", flush=True)
        with _even_on_a_full_disk():
            self._events[spec.job].write("failed", reason=str(reason), message=message)
            self._events[spec.job].flush(sync=True)

    def _open_events(self, spec: JobSpec) -> Events:
        path = JobPaths(Path(spec.folder)).events
        return EventWriter(path, spec.attempt) if self.processes.first else NoEvents()


@contextmanager
def _even_on_a_full_disk() -> Iterator[None]:
    """What cannot be written to a job's events is still said in the run's log, and nobody else's events suffer."""
    try:
        yield
    except OSError as error:
        print(f"events cannot be written: {error}", flush=True)


def reason_of(error: Exception) -> Reason:
    """Which of the known reasons an exception is."""
    if isinstance(error, JobFailed):
        return error.reason
    if isinstance(error, BadData):
        return Reason.BAD_DATA
    if isinstance(error, BadRecipe | BadInput):
        return Reason.BAD_RECIPE
    if isinstance(error, torch.OutOfMemoryError):
        return Reason.CUDA_OOM
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return Reason.DISK_FULL
    return Reason.CRASHED


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # DeepSpeed's communication threads on CPU are not joined at the interpreter's end: it would abort with SIGABRT
    # after all work is done and synced to disk.
    os._exit(exit_code)
