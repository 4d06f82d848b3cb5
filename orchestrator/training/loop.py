"""The one training loop: jobs on one base, step by step; each comes and goes between two steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from orchestrator.errors import PtqError
from orchestrator.jobspec import Ticket
from orchestrator.states import Reason
from orchestrator.training.company import Company, LeaveRequested, News
from orchestrator.training.distributed import Processes
from orchestrator.training.evaluate import Evaluation
from orchestrator.training.failures import JobFailed, met_by_all
from orchestrator.training.job import TrainedJob
from orchestrator.training.objectives import Example
from orchestrator.training.scores import FinalScores, evaluate_job, evaluation_rows, final_scores, scores_of_step
from orchestrator.training.step import Engine, Pace, Work, fused_step
from orchestrator.training.stop import StopRequested
from orchestrator.training.together import apply_together
from orchestrator.tuning.host import BaseHost

_REPORT_SECONDS = 0.5  # between writes of events: what `ptq status` sees is at most this old
_REST_SECONDS = 0.05  # between looks at the inbox while nobody is there


@dataclass(frozen=True)
class _Unread:
    """What one step told of its jobs: still on the device."""

    jobs: list[TrainedJob]
    steps: list[int]
    told: Tensor  #: [2, k]: losses, norms of gradients
    tokens: list[int]


@dataclass
class Loop:
    host: BaseHost
    processes: Processes
    company: Company
    on_join: Callable[[Ticket], TrainedJob | None]  #: opens a job that joins; None when it cannot be opened
    on_left: Callable[[TrainedJob, str], None]  #: a job was asked to leave, and is checkpointed
    on_failed: Callable[[TrainedJob, Exception], None]
    on_trained: Callable[[TrainedJob, FinalScores], None]  #: with the scores that are known already
    clock: Callable[[], float] = time.monotonic
    pace: Pace = field(default_factory=Pace)
    defer: bool = False  #: losses are read every half second, not every step: a GPU works on meanwhile
    _reported: float = field(default=0.0)
    _scored: dict[int, Evaluation] = field(default_factory=dict)  #: of this step, by the job's `id`
    _read_at: float = field(default=0.0)
    _unread: list[_Unread] = field(default_factory=list)
    _engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        self._engine = Engine(self.host, self.processes, self.pace)

    def run(self, jobs: Sequence[TrainedJob]) -> None:
        """Train all jobs, and those that join, to their ends. StopRequested leaves them checkpointed between two steps.

        Any other error leaves the checkpoints alone: it may have come in the middle of an optimizer's step.
        """
        active = list(jobs)
        del jobs  # who has left is not held until the run ends
        try:
            self._resume_all(active)
            while not (news := self.company.news(active)).over:
                if news:
                    self._read(active)
                self._change(news, active)
                if active:
                    self._step(active)
                elif not news:
                    time.sleep(_REST_SECONDS)
        except StopRequested:
            self._read(active)
            for job in list(active):
                with self._own_failures(job, active):
                    self._save(job)
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

    def _resume_all(self, active: list[TrainedJob]) -> None:
        for job in list(active):
            with self._own_failures(job, active):
                self._resume(job, active)

    def _resume(self, job: TrainedJob, active: list[TrainedJob]) -> None:
        """Do what a stop has left undone at the step that the job resumes from."""
        self._evaluate_when_due(job)
        if job.finished:
            self._end([job], active)

    def _step(self, active: list[TrainedJob]) -> None:
        if not self._unread:
            self._read_at = self.clock()
        batches: list[list[Example]] = []
        for job in list(active):
            with self._own_failures(job, active):
                batches.append(job.batch())
        if not active:
            return
        work = fused_step(self._engine, active, batches)
        for w in work:
            if w.unfit:
                with self._own_failures(w.job, active):
                    raise _too_large(w.job)
        for w in work:
            if w.job in active:
                with self._own_failures(w.job, active):
                    w.job.choose()
        fit = [w for w in work if w.job in active]
        if fit:
            self._apply(fit)
        if self._must_read([w.job for w in fit]):
            self._read(active)
        self._scored = self._score_together([w.job for w in fit if w.job in active])
        for w in fit:
            if w.job in active:
                with self._own_failures(w.job, active):
                    self._finish_step(w.job)
        self._end([w.job for w in fit if w.job in active and w.job.finished], active)
        if self.clock() - self._reported > _REPORT_SECONDS:
            self._reported = self.clock()
            for job in list(active):
                with self._own_failures(job, active):
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
                self._save(job)
                self.on_left(job, request.why)
        except StopRequested:
            raise
        except Exception as error:
            if self.processes.world > 1 and not isinstance(error, PtqError):
                raise
            if job in active:
                active.remove(job)
            self.on_failed(job, error)

    def _apply(self, work: Sequence[Work]) -> None:
        """The optimizers' step; what it says of losses and gradients stays on the device until `_read`."""
        jobs = [w.job for w in work]
        norms = apply_together(jobs) if self.host.fast.together else torch.stack([job.apply() for job in jobs])
        losses = torch.stack([torch.as_tensor(w.loss, dtype=torch.float64, device=norms.device) for w in work])
        told = torch.stack([losses, norms.double()])
        self._unread.append(_Unread(jobs, [job.step for job in jobs], told, [w.tokens for w in work]))

    def _must_read(self, jobs: Sequence[TrainedJob]) -> bool:
        """Where the device is the CPU nothing waits; several ranks have agreed in this step anyway.

        Nothing is done with a job (scored, saved, finished) whose losses are not known up to its last step.
        """
        if not self.defer or self.processes.world > 1 or any(self._due(job) for job in jobs):
            return True
        return self.clock() - self._read_at > _REPORT_SECONDS

    def _due(self, job: TrainedJob) -> bool:
        train = job.recipe.train
        every = [train.checkpoint_every, *([train.eval_every] if train.eval_every else [])]
        return job.finished or any(job.step % steps == 0 for steps in every)

    def _read(self, active: list[TrainedJob]) -> None:
        """Report the steps since the last time. A job ends at its first loss or gradient that is not finite."""
        unread, self._unread = self._unread, []
        now = self.clock()
        seconds, self._read_at = max(now - self._read_at, 1e-9), now
        tokens: dict[int, int] = {}
        for one in unread:
            for job, count in zip(one.jobs, one.tokens, strict=True):
                tokens[id(job)] = tokens.get(id(job), 0) + count
        for one in unread:
            losses, norms = one.told.tolist()
            for job, step, loss, norm in zip(one.jobs, one.steps, losses, norms, strict=True):
                if job in active:
                    with self._own_failures(job, active):
                        _report(job, step, loss, norm, tokens[id(job)] / seconds)

    def _finish_step(self, job: TrainedJob) -> None:
        job.tell_cuts()
        self._evaluate_when_due(job)
        if job.finished or job.step % job.recipe.train.checkpoint_every == 0:
            self._save(job)

    def _save(self, job: TrainedJob) -> None:
        """The first rank writes; what it meets, the others hear of."""
        with met_by_all(self.processes):
            job.checkpoint()

    def _to_score(self, job: TrainedJob) -> bool:
        every = job.recipe.train.eval_every
        keeps_best = job.recipe.train.keep == "best"  # then the last step is scored like the others
        return bool(every) and not (
            job.step % (every or 1) or (job.finished and not keeps_best) or job.evaluated == job.step
        )

    def _score_together(self, jobs: Sequence[TrainedJob]) -> dict[int, Evaluation]:
        due = [job for job in jobs if self._to_score(job)]
        if len(due) < 2:
            return {}
        return scores_of_step(self.host, due, self.processes, partial(self.company.within, *due))

    def _evaluate_when_due(self, job: TrainedJob) -> None:
        if not self._to_score(job):
            return
        with met_by_all(self.processes):
            rows = evaluation_rows(job, "validation", most=job.recipe.train.eval_rows)
        if rows is not None:
            result = self._scored.pop(id(job), None) or evaluate_job(
                self.host, job, rows, "validation", self.processes, between=partial(self.company.within, job)
            )
            with met_by_all(self.processes):
                job.events.write("metric", step=job.step, split="validation", values=result.values)
                job.events.flush()
                job.scored(result.values)
        job.evaluated = job.step

    def _end(self, jobs: Sequence[TrainedJob], active: list[TrainedJob]) -> None:
        """Score all that are trained from the same forwards; then each leaves by itself."""
        between = partial(self.company.within, *jobs)
        scores = final_scores(self.host, jobs, self.processes, between) if jobs else {}
        for job in jobs:
            with self._own_failures(job, active):
                active.remove(job)
                self.on_trained(job, scores.get(id(job), {}))


def _too_large(job: TrainedJob) -> JobFailed:
    advice = "try a lower task.max_input_tokens, or more GPUs with resources.zero: 3"
    return JobFailed(Reason.CUDA_OOM, f"out of memory with a single row, at step {job.step + 1}; {advice}")


def _report(job: TrainedJob, step: int, loss: float, norm: float, speed: float) -> None:
    """Events of one step. Raises JobFailed where its numbers are not finite."""
    if not math.isfinite(loss):
        advice = "try a lower train.lr or a longer train.warmup"
        raise JobFailed(Reason.NAN_LOSS, f"the loss became {loss} at step {step}; {advice}")
    if not math.isfinite(norm):
        raise JobFailed(Reason.NAN_LOSS, f"the gradient became {norm} at step {step}; try a lower train.lr")
    job.events.write("metric", step=step, split="train", values={"loss": loss, "gradient_norm": norm})
    job.events.write("progress", step=step, steps=job.steps, tokens_per_second=speed)
