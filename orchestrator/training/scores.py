"""The scores of a run's jobs: those that are due at the same step from the same forwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from itertools import islice
from pathlib import Path

from orchestrator.errors import BadData, PtqError
from orchestrator.recipe.judging import Judging
from orchestrator.recipe.scores import SCORED
from orchestrator.training.checkpoint import identity_of
from orchestrator.training.company import LeaveRequested
from orchestrator.training.distributed import Processes
from orchestrator.training.evaluate import Between, Evaluation, evaluate
from orchestrator.training.failures import met_by_all
from orchestrator.training.job import TrainedJob
from orchestrator.training.kept import KeptAnswers
from orchestrator.training.mixture import first_of_each, tasks_of
from orchestrator.training.objectives.asking import Asked
from orchestrator.training.objectives.objective import Fields
from orchestrator.training.parts import refuse_many_parts
from orchestrator.training.rows import Rows, has_split
from orchestrator.training.stop import StopRequested
from orchestrator.tuning.host import BaseHost

#: What a job is scored on at its end: (split, with its prompt; without: the base as it was).
FinalScores = dict[tuple[str, bool], Evaluation]


def evaluation_rows(job: TrainedJob, split: str, *, most: int | None = None) -> list[Fields] | None:
    """The (first) rows of a split, of each task of a mixture alike, or None when the dataset has none."""
    folder, mixture = job.dataset_folder, job.recipe.train.mixture
    if not has_split(folder, split):
        return None
    rows = Rows.open(folder, split)
    if mixture is not None and most is not None:
        return [rows[number] for number in _of_each_task(folder, split, mixture.by, most)] or None
    return list(islice(rows, most)) or None


@lru_cache(maxsize=64)
def _of_each_task(folder: Path, split: str, by: str, most: int) -> tuple[int, ...]:
    """Once for a version of a dataset, whose rows never change, and not at every evaluation."""
    return tuple(first_of_each(tasks_of(by, Rows.open(folder, split)), most))


def refuse_unscorable(job: TrainedJob) -> None:
    """BadData for a row of a split to be scored that cannot be: before the first step, not after the last."""
    for split in SCORED:
        rows = evaluation_rows(job, split)
        if rows is None:
            continue
        try:
            job.objective.references(rows)
            refuse_many_parts(Judging(job.recipe), rows)
        except BadData as error:
            number = None if error.where else _first_unscorable(job, rows)
            data = job.spec.dataset
            where = error.where or f"{data.name}@{data.version}, {split}" + (f" row {number}" if number else "")
            raise BadData(error.message, where=where, hint=error.hint or "mend the dataset and submit again") from error


def _first_unscorable(job: TrainedJob, rows: Sequence[Fields]) -> int | None:
    """Its number, from 1."""
    for number, row in enumerate(rows, start=1):
        try:
            job.objective.references([row])
        except BadData:
            return number
    return None


def evaluate_job(
    host: BaseHost,
    job: TrainedJob,
    rows: Sequence[Fields],
    split: str,
    processes: Processes,
    *,
    tuned: bool = True,
    final: bool = False,
    between: Between = lambda: None,
) -> Evaluation:
    """Score the job as it stands, or (`tuned=False`) its base without virtual tokens and with the head as it starts."""
    with nullcontext() if tuned else job.untuned_base():
        asked = _asked(host, job, rows, processes, tuned=tuned)
        kept = _kept(job, split, rows, tuned=tuned, final=final)
        size = job.recipe.train.eval_batch_size
        return evaluate(host, [asked], batch_sizes=[size], processes=processes, between=between, kept=[kept])[0]


def scores_of_step(
    host: BaseHost, jobs: Sequence[TrainedJob], processes: Processes, between: Between
) -> dict[int, Evaluation]:
    """Scores on the validation rows of several jobs as they stand, by the job's `id`; see `_together`."""

    def questions() -> Questions:
        found = [(job, evaluation_rows(job, "validation", most=job.recipe.train.eval_rows)) for job in jobs]
        return [_Question(host, job, "validation", rows, processes, final=False) for job, rows in found if rows]

    asked, found = _together(host, questions, processes, between)
    return {id(question.job): one for question, one in zip(asked, found, strict=True)}


def final_scores(
    host: BaseHost, jobs: Sequence[TrainedJob], processes: Processes, between: Between
) -> dict[int, FinalScores]:
    """All that `finish.finish` asks for of several jobs, by the job's `id`; see `_together`."""

    def questions() -> Questions:
        made = []
        for job in (job for job in jobs if not job.changes_base):  # who does has it in two states
            job.take_best()
            for split in SCORED:
                if rows := evaluation_rows(job, split):
                    made.append(_Question(host, job, split, rows, processes, final=True))
                    if job.recipe.train.baseline and not job.is_its_baseline:
                        made.append(_Question(host, job, split, rows, processes, final=True, tuned=False))
        return made

    asked, found = _together(host, questions, processes, between)
    scores: dict[int, FinalScores] = {}
    for question, one in zip(asked, found, strict=True):
        scores.setdefault(id(question.job), {})[question.split, question.tuned] = one
    return scores


class _Question:
    """One split of one job, with its prompt or without."""

    def __init__(
        self,
        host: BaseHost,
        job: TrainedJob,
        split: str,
        rows: Sequence[Fields],
        processes: Processes,
        *,
        final: bool,
        tuned: bool = True,
    ) -> None:
        self.job, self.split, self.tuned = job, split, tuned
        self.asked = _asked(host, job, rows, processes, tuned=tuned)
        self.kept = _kept(job, split, rows, tuned=tuned, final=final)


Questions = list[_Question]


def _together(
    host: BaseHost, questions: Callable[[], Questions], processes: Processes, between: Between
) -> tuple[Questions, list[Evaluation]]:
    """Their answers from the same forwards; nothing where there is one question only, or anything is amiss.

    Then each job is scored by itself, and what is wrong with one, or asks it to leave, is its own affair.
    """
    try:
        with met_by_all(processes, forwards=True):
            asked = questions()
        if len(asked) < 2:
            return [], []
        sizes = [question.job.recipe.train.eval_batch_size for question in asked]
        ask, kept = [question.asked for question in asked], [question.kept for question in asked]
        return asked, evaluate(host, ask, batch_sizes=sizes, processes=processes, between=between, kept=kept)
    except StopRequested:
        raise
    except Exception as error:
        if processes.sharded and not isinstance(error, PtqError | LeaveRequested):
            raise  # alone: the other ranks wait for this one in the middle of a forward
        return [], []


def _asked(host: BaseHost, job: TrainedJob, rows: Sequence[Fields], processes: Processes, *, tuned: bool) -> Asked:
    head = job.head if tuned else job.new_head(host, processes.device)
    return Asked(job.objective, job.folded(), head, rows, tuned, Judging(job.recipe))


def _kept(job: TrainedJob, split: str, rows: Sequence[Fields], *, tuned: bool, final: bool) -> KeptAnswers:
    """At the end what is trained may be that of an earlier step (`keep: best`)."""
    stands = f"at its end, best {job.best.step}" if final else "as it stands"
    of = f"{identity_of(job.spec)}, step {job.step}, {stands}: {len(rows)} rows of {split}"
    return KeptAnswers(job.paths.answers / f"{split}-{'tuned' if tuned else 'base'}.json", of, final)
