"""The program of a run: train the run's jobs on one frozen base.

    accelerate launch … -m orchestrator.training.run RUN_FOLDER

Reads RUN_FOLDER/run.json and each job's job.json, and takes more jobs from RUN_FOLDER/inbox; appends to each job's
events.jsonl. Exit codes: 0 no job failed, 1 one did (its event says why), 75 left at a step boundary because SIGTERM
asked for it.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers.utils import logging as transformers_logging

from orchestrator import failpoints
from orchestrator.companions import changes
from orchestrator.cost import Cost
from orchestrator.errors import BadRecipe, PtqError
from orchestrator.events import Events, EventWriter, NoEvents
from orchestrator.jobspec import BaseSpec, JobSpec, RunSpec, Ticket
from orchestrator.paths import JobPaths, RunPaths
from orchestrator.recipe.bases import read_base_facts
from orchestrator.recipe.schema import JobRecipe
from orchestrator.recipe.trained import trained_weights
from orchestrator.settings import load_settings
from orchestrator.states import Reason
from orchestrator.training.calibrate import TooBusy, calibrate, device_name
from orchestrator.training.cards import check_cards
from orchestrator.training.checkpoint import RULES
from orchestrator.training.company import TIMEOUT, Company
from orchestrator.training.distributed import Processes, join, load_as, place
from orchestrator.training.environment import environment
from orchestrator.training.failures import JobFailed, met_by_all, reason_of
from orchestrator.training.finish import finish
from orchestrator.training.job import TrainedJob
from orchestrator.training.loop import Loop
from orchestrator.training.scores import FinalScores, refuse_unscorable
from orchestrator.training.step import Pace
from orchestrator.training.stop import STOPPED_EXIT_CODE, StopFlag, StopRequested
from orchestrator.training.tracking import Patience, TrackedEvents, wait_for
from orchestrator.tuning.host import BaseHost, Kind
from orchestrator.tuning.own_weights import weight_names
from orchestrator.weights import fingerprint

MEASURED_AGAIN = 3600.0  #: seconds after which what a step costs is measured again
#: Tokens of a forward on CPU. 16 jobs of the 1M benchmark base in one forward take 5 % less time than in four, and
#: 110 MB more; with n = 100 and 128 tokens a row they take 800 MB more.
_CPU_TOKENS = 2048
#: Of a larger base fewer: its matrix products are as fast with 512, and 2,048 tokens of the 22M base keep 230 MB.
_CPU_BYTES, _CPU_LEAST = 128 << 20, 512
_KEPT = 20  #: numbers that a layer keeps of each token for the backward, in multiples of its width


def main(arguments: Sequence[str]) -> int:
    paths = RunPaths(Path(arguments[0]))
    spec = RunSpec.read(paths.spec)
    torch.set_num_threads(spec.threads)
    if spec.device == "cuda":
        _in_full_precision()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    processes = join(device=spec.device, processes=spec.processes, zero=spec.zero)
    try:
        return Run(processes, paths, spec).train()
    finally:
        processes.close()


@dataclass
class Present:
    """A job that is in the run and has not said how it ends."""

    spec: JobSpec
    events: Events
    job: TrainedJob | None = None  #: once it is open


class Run:
    """The jobs of one run, their event files, and how each ended."""

    def __init__(self, processes: Processes, paths: RunPaths, spec: RunSpec) -> None:
        self.processes, self.cards, self._spec = processes, spec.gpus, spec
        self.stop = StopFlag(processes)
        self.company = Company(paths, spec, processes, self.stop)
        self.failed = False
        self._present: dict[int, Present] = {}
        self._tracked: list[TrackedEvents] = []
        self._patience = Patience()
        self._specs = [JobSpec.read(JobPaths(Path(folder)).spec) for folder in spec.jobs]
        self._first = self._specs[0]  #: its base is the run's
        for one in self._specs:
            self._enter(one)

    def train(self) -> int:
        try:
            self._train()
        except StopRequested:
            for number in list(self._present):
                job = self._present[number].job
                self._leave(number, "stopped", step=0 if job is None else job.step, why="asked")
            return STOPPED_EXIT_CODE
        except Exception as error:
            self._fail_all(error)
        finally:
            for present in self._present.values():
                with _even_on_a_full_disk():
                    present.events.close()
            wait_for(self._tracked)
        return 1 if self.failed else 0

    def _train(self) -> None:
        check_cards(self.cards)
        host = self._load_base()
        self._measure(host)
        trained = self._trained_weights(host)
        checksum = host.checksum(without=trained)

        def on_trained(job: TrainedJob, scores: FinalScores) -> None:
            with met_by_all(self.processes):
                if host.checksum(without=trained) != checksum:
                    what = "a weight of the frozen base moved in training; the artifact was not written"
                    raise JobFailed(Reason.BASE_CHANGED, what)
            finish(host, job, self.processes, partial(self.company.within, job), scores)
            self._present.pop(job.spec.job).events.close()
            failpoints.reach("training.left")

        on_gpu = self.processes.device.type == "cuda"
        Loop(
            host,
            self.processes,
            self.company,
            on_join=lambda ticket: self._join(ticket, host),
            on_left=self._on_left,
            on_failed=lambda job, error: self._report_failure(job.spec, error, alone=True),
            on_trained=on_trained,
            pace=Pace(tokens=0 if self._spec.fuse_turns else None if on_gpu else _cpu_tokens(host)),
            defer=on_gpu,
        ).run([job for spec in self._specs if (job := self._open(spec, host, first=True)) is not None])

    def _trained_weights(self, host: BaseHost) -> frozenset[str]:
        """Names of the base's weights that the run's only job trains; a job that trains any has no company."""
        which = trained_weights(JobRecipe.model_validate(self._first.recipe))
        return frozenset() if which == "none" else weight_names(host, which)

    def _load_base(self) -> BaseHost:
        base = self._first.base
        recipe = JobRecipe.model_validate(self._first.recipe)
        with met_by_all(self.processes):  # before any rank loads: ranks with a sharded base wait for each other in it
            if self.processes.first:
                _refuse_changes(base)
        with met_by_all(self.processes, forwards=True):
            load_as(self.processes, recipe.base.dtype)
            host = BaseHost.load(
                Path(base.path),
                kind=cast(Kind, base.kind),
                dtype=recipe.base.dtype,
                # DeepSpeed makes a sharded base where it stays, and its engine does not move one back.
                device=self.processes.device if self.processes.zero == 3 else "cpu",
                trust_remote_code=recipe.base.trust_remote_code and load_settings().allow_remote_code,
            )
        place(host, self.processes)
        return host

    def _measure(self, host: BaseHost) -> None:
        """What a step costs here, for whoever fills this run and the next ones.

        Again after an hour, for it may have been disturbed: of two measurements the faster one is the truer.
        """
        if self._spec.calibration is None:
            return
        path, base = Path(self._spec.calibration), self._first.base
        if self.processes.gather(_is_fresh(path))[0]:
            return
        try:
            cost = calibrate(host, self.processes, context=read_base_facts(Path(base.path)).max_positions)
        except Exception as error:  # the jobs can be trained all the same; who shares is then decided by estimates
            if self.processes.sharded and not isinstance(error, PtqError | TooBusy):
                raise  # alone: the other ranks wait for this one in the middle of a forward
            print(f"what a step costs could not be measured: {error}", flush=True)
            return
        if self.processes.first:
            with _even_on_a_full_disk():
                cost.faster(Cost.read(path)).write(path, {
                    "base": base.id, "fingerprint": base.fingerprint, "dtype": self._first.recipe["base"]["dtype"],
                    "device": device_name(self.processes.device), "threads": self._spec.threads,
                    "processes": self.processes.world, "zero": self.processes.zero, "at": time.time(),
                })  # fmt: skip

    def _join(self, ticket: Ticket, host: BaseHost) -> TrainedJob | None:
        """A job that comes while others train; what is wrong with it is wrong for it alone."""
        try:
            with met_by_all(self.processes):
                spec = JobSpec.read(JobPaths(Path(ticket.folder)).spec)
                if spec.attempt == ticket.attempt:
                    self._enter(spec)
        except Exception as error:
            self._cannot_join(ticket, error)
            return None
        return self._open(spec, host, first=False) if spec.attempt == ticket.attempt else None

    def _cannot_join(self, ticket: Ticket, error: Exception) -> None:
        """What is wrong with its files is wrong for it alone, and said in its events as far as they can be written."""
        self.failed = True
        reason = Reason.FOLDER_LOST if isinstance(error, FileNotFoundError) else reason_of(error)
        print(f"job {ticket.job} cannot join ({reason}): {error}", flush=True)
        if self.processes.first:
            path = JobPaths(Path(ticket.folder)).events
            with _even_on_a_full_disk(), EventWriter(path, ticket.attempt) as events:
                events.write("failed", reason=str(reason), message=f"its files cannot be read: {error}", alone=True)

    def _open(self, spec: JobSpec, host: BaseHost, *, first: bool) -> TrainedJob | None:
        present = self._present[spec.job]
        try:
            with met_by_all(self.processes, forwards=True):
                self._check_base(spec)
                job = TrainedJob.open(spec, host, present.events, self.processes, self.company.within)
                if self.processes.first and job.saved < 0:  # who goes on was looked at before the first step
                    refuse_unscorable(job)
            self.processes.same_everywhere(job.parameters)
            with met_by_all(self.processes):
                self._tell_that_it_starts(job)
        except StopRequested:
            raise
        except Exception as error:
            # Several ranks go on only after what all of them meet: faults of recipe and data.
            if self.processes.world > 1 and not isinstance(error, PtqError):
                raise
            self._report_failure(spec, error, alone=True)
            return None
        present.job = job
        self.company.admit(job, first=first)
        what = f"{job.recipe.method.type}, {job.method.length} virtual tokens"
        print(f"job {spec.job}: step {job.step} of {job.steps}, {what}", flush=True)
        return job

    def _tell_that_it_starts(self, job: TrainedJob) -> None:
        device, world = self.processes.device, self.processes.world
        job.events.write(
            "started", processes=world, device=str(device), resumed_from=job.resumed_from, steps=job.steps
        )  # fmt: skip
        job.events.write("environment", **environment(device.type, world))
        if job.rules != RULES:
            what = "were taken by another version of ptq, to which the same recipe may have meant another loss or decay"
            job.events.write("warning", message=f"the first {job.step} steps {what}; submit again to have all alike")
        job.events.flush()

    def _check_base(self, spec: JobSpec) -> None:
        """The run's one base was loaded as the first job asks for it."""
        first = self._first
        loaded = (first.base.fingerprint, first.base.kind, first.recipe["base"]["dtype"])
        wanted = (spec.base.fingerprint, spec.base.kind, spec.recipe["base"]["dtype"])
        if wanted != loaded:
            raise BadRecipe(f"this run has loaded another base ({loaded} instead of {wanted})", where="base")
        if spec.base.companions != first.base.companions:
            what = "this run has loaded the base with another tokenizer or configuration"
            raise BadRecipe(what, where="base", hint="`ptq retry` gives the job a run of its own")

    def _on_left(self, job: TrainedJob, why: str) -> None:
        if why == TIMEOUT:
            self._report_failure(job.spec, JobFailed(Reason.TIMEOUT, "the time limit is over"), alone=True)
            return
        print(f"job {job.spec.job}: leaves at step {job.step} ({why})", flush=True)
        self._leave(job.spec.job, "stopped", step=job.step, why=why)

    def _fail_all(self, error: Exception) -> None:
        """An error that is no single job's: the base, a full disk, a fault of ours."""
        for number in list(self._present):
            self._report_failure(self._present[number].spec, error, alone=False)

    def _report_failure(self, spec: JobSpec, error: Exception, *, alone: bool) -> None:
        self.failed = True
        reason = reason_of(error)
        if reason is Reason.CRASHED:
            traceback.print_exception(error)
        message = str(error) or type(error).__name__
        print(f"job {spec.job} failed ({reason}): {message}", flush=True)
        self._leave(spec.job, "failed", reason=str(reason), message=message, alone=alone)

    def _enter(self, spec: JobSpec) -> None:
        path = JobPaths(Path(spec.folder)).events
        events: Events = EventWriter(path, spec.attempt) if self.processes.first else NoEvents()
        if isinstance(events, EventWriter) and spec.recipe.get("tracking"):
            events = TrackedEvents(events, spec, self._patience)
            self._tracked.append(events)
        self._present[spec.job] = Present(spec, events)

    def _leave(self, number: int, last_word: str, **fields: Any) -> None:
        """The last event of this attempt; from here on nothing is written for the job."""
        events = self._present.pop(number).events
        with _even_on_a_full_disk():
            events.write(last_word, **fields)
            events.close()
        failpoints.reach("training.left")


def _refuse_changes(base: BaseSpec) -> None:
    """JobFailed where its weights, or the files beside them, are not those of submission."""
    found = fingerprint(Path(base.path))
    if found != base.fingerprint:
        raise JobFailed(
            Reason.BASE_CHANGED,
            f"the weights in {base.path} are not those of submission ({found} instead of {base.fingerprint}); "
            "add the base again with `ptq base add` and submit again",
        )
    told = changes(base.companions, Path(base.path))
    if told:
        what = f"{', '.join(told)} in {base.path} since submission: the same text may be other tokens now"
        raise JobFailed(Reason.BASE_CHANGED, f"{what}; put it back and `ptq retry`, or submit again")


@contextmanager
def _even_on_a_full_disk() -> Iterator[None]:
    """What cannot be written to a job's events is still said in the run's log, and nobody else's events suffer."""
    try:
        yield
    except OSError as error:
        print(f"events cannot be written: {error}", flush=True)


def _in_full_precision() -> None:
    """An LSTM in fp32 as on a CPU: cuDNN would round its factors to TF32's 10 bits, as matrix products are not."""
    torch.backends.cudnn.allow_tf32 = False


def _cpu_tokens(host: BaseHost) -> int:
    """How many tokens share a forward on a CPU: what keeps little enough for the backward."""
    config = host.model.config.get_text_config()
    kept = _KEPT * config.hidden_size * config.num_hidden_layers * host.dtype.itemsize
    return min(_CPU_TOKENS, max(_CPU_LEAST, _CPU_BYTES // kept))


def _is_fresh(path: Path) -> bool:
    return path.exists() and time.time() - path.stat().st_mtime < MEASURED_AGAIN


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # DeepSpeed's communication threads on CPU are not joined at the interpreter's end: it would abort with SIGABRT
    # after all work is done and synced to disk.
    os._exit(exit_code)
