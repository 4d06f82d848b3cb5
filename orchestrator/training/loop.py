"""The one training loop: jobs on one base, step by step; each comes and goes between two steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from orchestrator.errors import PtqError
from orchestrator.jobspec import Ticket
from orchestrator.states import Reason
from orchestrator.training.company import Company, LeaveRequested, News
from orchestrator.training.distributed import Processes
from orchestrator.training.evaluate import Evaluation, evaluate
from orchestrator.training.job import TrainedJob
from orchestrator.training.objectives import Example
from orchestrator.training.objectives.objective import Fields
from orchestrator.training.rows import Rows, has_split
from orchestrator.training.step import Pace, Work, fused_step
from orchestrator.training.stop import StopRequested
from orchestrator.tuning.host import BaseHost

_REPORT_SECONDS = 0.5  # between writes of events: what `ptq status` sees is at most this old
_REST_SECONDS = 0.05  # between looks at the inbox while nobody is there


class JobFailed(PtqError):
    """A job ended for a reason of its own; the others of its run go on."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class Loop:
    host: BaseHost
    processes: Processes
    company: Company
    on_join: Callable[[Ticket], TrainedJob | None]  #: opens a job that joins; None when it cannot be opened
    on_left: Callable[[TrainedJob, str], None]  #: a job was asked to leave, and is checkpointed
    on_failed: Callable[[TrainedJob, Exception], None]
    on_trained: Callable[[TrainedJob], None]
    clock: Callable[[], float] = time.monotonic
    pace: Pace = field(default_factory=Pace)
    _reported: float = field(default=0.0)

    def run(self, jobs: Sequence[TrainedJob]) -> None:
        """Train all jobs, and those that join, to their ends. StopRequested leaves them checkpointed between two steps.

        Any other error leaves the checkpoints alone: it may have come in the middle of an optimizer's step.
        """
        active = list(jobs)
        try:
            for job in jobs:
                with self._own_failures(job, active):
                    self._resume(job, active)
            while not (news := self.company.news(active)).over:
                self._change(news, active)
                if active:
                    self._step(active)
                elif not news:
                    time.sleep(_REST_SECONDS)
        except StopRequested:
            for job in list(active):
                with self._own_failures(job, active):
                    job.checkpoint()
            raise

    def _change(self, news: News, active: list[TrainedJob]) -> None:
        for job in [job for job in active if job.spec.job in news.leave]:
            with self._own_failures(job, active):
                raise LeaveRequested(news.leave[job.spec.job])
        for ticket in news.join:
            joined = self.on_join(ticket)
            if joined is not None:
                active.append(joined)
                with self._own_failures(joined, active):
                    self._resume(joined, active)

    def _resume(self, job: TrainedJob, active: list[TrainedJob]) -> None:
        """Do what a stop has left undone at the step that the job resumes from."""
        self._evaluate_when_due(job)
        if job.finished:
            self._done(job, active)

    def _step(self, active: list[TrainedJob]) -> None:
        started = self.clock()
        batches: list[list[Example]] = []
        for job in list(active):
            with self._own_failures(job, active):
                batches.append(job.batch())
        if not active:
            return
        work = fused_step(self.host, active, batches, self.processes, self.pace)
        seconds = max(self.clock() - started, 1e-9)
        for w in work:
            with self._own_failures(w.job, active):
                self._finish_step(w, seconds, active)
        if self.clock() - self._reported > _REPORT_SECONDS:
            self._reported = self.clock()
            for job in active:
                job.events.flush()

    @contextmanager
    def _own_failures(self, job: TrainedJob, active: list[TrainedJob]) -> Iterator[None]:
        """What goes wrong inside, or asks the job to leave, ends it here; its neighbours go on.

        With several ranks only an error that all of them meet may do so: the others would wait for ever.
        """
        try:
            try:
                yield
            except LeaveRequested as request:
                if job in active:
                    active.remove(job)
                job.checkpoint()
                self.on_left(job, request.why)
        except StopRequested:
            raise
        except Exception as error:
            if self.processes.world > 1 and not isinstance(error, PtqError):
                raise
            if job in active:
                active.remove(job)
            self.on_failed(job, error)

    def _finish_step(self, work: Work, seconds: float, active: list[TrainedJob]) -> None:
        job = work.job
        if work.unfit:
            advice = "try a lower task.max_input_tokens, or more GPUs with resources.zero: 3"
            raise JobFailed(Reason.CUDA_OOM, f"out of memory with a single row, at step {job.step + 1}; {advice}")
        if not math.isfinite(work.loss):
            advice = "try a lower train.lr or a longer train.warmup"
            raise JobFailed(Reason.NAN_LOSS, f"the loss became {work.loss} at step {job.step + 1}; {advice}")
        norm = job.apply()
        if not math.isfinite(norm):
            raise JobFailed(Reason.NAN_LOSS, f"the gradient became {norm} at step {job.step}; try a lower train.lr")
        job.events.write("metric", step=job.step, split="train", values={"loss": work.loss, "gradient_norm": norm})
        job.events.write("progress", step=job.step, steps=job.steps, tokens_per_second=work.tokens / seconds)
        self._evaluate_when_due(job)
        if job.finished or job.step % job.recipe.train.checkpoint_every == 0:
            job.checkpoint()
        if job.finished:
            self._done(job, active)

    def _evaluate_when_due(self, job: TrainedJob) -> None:
        every = job.recipe.train.eval_every
        keeps_best = job.recipe.train.keep == "best"  # then the last step is scored like the others
        if not every or job.step % every or (job.finished and not keeps_best) or job.evaluated == job.step:
            return
        rows = evaluation_rows(job, "validation", most=job.recipe.train.eval_rows)
        if rows is not None:
            result = evaluate_job(self.host, job, rows, self.processes, between=partial(self.company.within, job))
            job.events.write("metric", step=job.step, split="validation", values=result.values)
            job.events.flush()
            job.scored(result.values)
        job.evaluated = job.step

    def _done(self, job: TrainedJob, active: list[TrainedJob]) -> None:
        active.remove(job)
        self.on_trained(job)


def evaluation_rows(job: TrainedJob, split: str, *, most: int | None = None) -> list[Fields] | None:
    """The (first) rows of a split, or None when the dataset has none."""
    folder = job.dataset_folder
    if not has_split(folder, split):
        return None
    return list(islice(Rows.open(folder, split), most)) or None


def evaluate_job(
    host: BaseHost,
    job: TrainedJob,
    rows: Sequence[Fields],
    processes: Processes,
    *,
    tuned: bool = True,
    between: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Score the job as it stands, or (`tuned=False`) its base without virtual tokens and with the head as it starts."""
    with nullcontext() if tuned else job.untuned_base():
        return evaluate(
            host,
            job.objective,
            job.folded(),
            job.head if tuned else job.new_head(host, processes.device),
            rows,
            batch_size=job.recipe.train.eval_batch_size,
            processes=processes,
            tuned=tuned,
            between=between,
        )
