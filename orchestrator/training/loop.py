"""The one training loop: k >= 1 jobs on one base, step by step, each leaving when it is done, failed or asked to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orchestrator.errors import PtqError
from orchestrator.states import Reason
from orchestrator.training.distributed import Processes
from orchestrator.training.evaluate import Evaluation, evaluate
from orchestrator.training.job import TrainedJob
from orchestrator.training.objectives import Example
from orchestrator.training.objectives.objective import Fields
from orchestrator.training.rows import Rows, has_split
from orchestrator.training.step import Work, fused_step
from orchestrator.training.stop import StopFlag, StopRequested
from orchestrator.tuning.host import BaseHost

_REPORT_SECONDS = 0.5  # between writes of events: what `ptq status` sees is at most this old


class JobFailed(PtqError):
    """A job ended for a reason of its own; the others of its run go on."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class Loop:
    host: BaseHost
    processes: Processes
    stop: StopFlag
    on_failed: Callable[[TrainedJob, Exception], None]
    on_trained: Callable[[TrainedJob], None]
    clock: Callable[[], float] = time.monotonic
    _reported: float = field(default=0.0)

    def run(self, jobs: Sequence[TrainedJob]) -> None:
        """Train all jobs to their ends. StopRequested leaves them checkpointed at a step boundary."""
        active = list(jobs)
        try:
            for job in [job for job in active if job.finished]:
                self._leave(job, active)
            while active:
                self._step(active)
                self.stop.check()
        finally:
            for job in active:
                job.checkpoint()

    def _step(self, active: list[TrainedJob]) -> None:
        started = self.clock()
        batches: list[list[Example]] = []
        for job in list(active):
            try:
                batches.append(job.batch())
            except PtqError as error:
                self._fail(job, error, active)
        if not active:
            return
        work = fused_step(self.host, active, batches, self.processes)
        for w in work:
            try:
                self._finish_step(w, self.clock() - started, active)
            except StopRequested:
                raise
            except Exception as error:
                # With several ranks only an error that all of them meet may end one job: the others would wait for ever.
                if self.processes.world > 1 and not isinstance(error, PtqError):
                    raise
                self._fail(w.job, error, active)
        if self.clock() - self._reported > _REPORT_SECONDS:
            self._reported = self.clock()
            for job in active:
                job.events.flush()

    def _finish_step(self, work: Work, seconds: float, active: list[TrainedJob]) -> None:
        job = work.job
        if not math.isfinite(work.loss):
            message = f"the loss became {work.loss} at step {job.step + 1}; try a lower train.lr or a longer train.warmup"
            raise JobFailed(Reason.NAN_LOSS, message)
        norm = job.apply()
        if not math.isfinite(norm):
            raise JobFailed(Reason.NAN_LOSS, f"the gradient became {norm} at step {job.step}; try a lower train.lr")
        job.events.write("metric", step=job.step, split="train", values={"loss": work.loss, "gradient_norm": norm})
        job.events.write("progress", step=job.step, steps=job.steps, tokens_per_second=work.tokens / max(seconds, 1e-9))
        every = job.recipe.train.eval_every
        if every and job.step % every == 0 and not job.finished:
            self._evaluate_while_training(job)
        if job.finished or job.step % job.recipe.train.checkpoint_every == 0:
            job.checkpoint()
        if job.finished:
            self._leave(job, active)

    def _evaluate_while_training(self, job: TrainedJob) -> None:
        rows = evaluation_rows(job, "validation")
        if rows is not None:
            limit = job.recipe.train.eval_rows
            result = evaluate_job(self.host, job, rows[:limit], self.processes, between=self._between_batches)
            job.events.write("metric", step=job.step, split="validation", values=result.values)
            job.events.flush()

    def _between_batches(self) -> None:
        """An evaluation may take longer than a stop's grace; leaving it costs only the evaluation."""
        self.stop.check()

    def _leave(self, job: TrainedJob, active: list[TrainedJob]) -> None:
        active.remove(job)
        self.on_trained(job)

    def _fail(self, job: TrainedJob, error: Exception, active: list[TrainedJob]) -> None:
        if job in active:
            active.remove(job)
        self.on_failed(job, error)


def evaluation_rows(job: TrainedJob, split: str) -> list[Fields] | None:
    """All rows of a split, or None when the dataset has no such split."""
    folder = job.dataset_folder
    return list(Rows.open(folder, split)) if has_split(folder, split) else None


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
