"""The scores of a run's jobs: those that are due at the same step from the same forwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice

from orchestrator.errors import PtqError
from orchestrator.training.company import LeaveRequested
from orchestrator.training.distributed import Processes
from orchestrator.training.evaluate import Evaluation, evaluate
from orchestrator.training.failures import met_by_all
from orchestrator.training.job import TrainedJob
from orchestrator.training.mixture import task_of
from orchestrator.training.objectives.asking import Asked
from orchestrator.training.objectives.objective import Fields
from orchestrator.training.rows import Rows, has_split
from orchestrator.training.stop import StopRequested
from orchestrator.tuning.host import BaseHost

SPLITS = ("validation", "test")

#: What a job is scored on at its end: (split, with its prompt; without: the base as it was).
FinalScores = dict[tuple[str, bool], Evaluation]
Between = Callable[[], None]


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
    between: Between = lambda: None,
) -> Evaluation:
    """Score the job as it stands, or (`tuned=False`) its base without virtual tokens and with the head as it starts."""
    with nullcontext() if tuned else job.untuned_base():
        asked = _asked(host, job, rows, processes, tuned=tuned)
        size = job.recipe.train.eval_batch_size
        return evaluate(host, [asked], batch_sizes=[size], processes=processes, between=between)[0]


def scores_of_step(
    host: BaseHost, jobs: Sequence[TrainedJob], processes: Processes, between: Between
) -> dict[int, Evaluation]:
    """Scores on the validation rows of several jobs as they stand, by the job's `id`; see `_together`."""

    def questions() -> list[tuple[TrainedJob, Asked]]:
        found = [(job, evaluation_rows(job, "validation", most=job.recipe.train.eval_rows)) for job in jobs]
        return [(job, _asked(host, job, rows, processes, tuned=True)) for job, rows in found if rows]

    asked, found = _together(host, questions, processes, between)
    return {id(job): one for (job, _), one in zip(asked, found, strict=True)}


def final_scores(
    host: BaseHost, jobs: Sequence[TrainedJob], processes: Processes, between: Between
) -> dict[int, FinalScores]:
    """All that `finish.finish` asks for of several jobs, by the job's `id`; see `_together`."""

    def questions() -> list[tuple[TrainedJob, Asked]]:
        made = []
        for job in (job for job in jobs if not job.changes_base):  # who does has it in two states
            job.take_best()
            for split in SPLITS:
                if rows := evaluation_rows(job, split):
                    made.append((job, split, True, _asked(host, job, rows, processes, tuned=True)))
                    if job.recipe.train.baseline:
                        made.append((job, split, False, _asked(host, job, rows, processes, tuned=False)))
        keys.extend((id(job), (split, tuned)) for job, split, tuned, _ in made)
        return [(job, one) for job, _, _, one in made]

    keys: list[tuple[int, tuple[str, bool]]] = []
    _, found = _together(host, questions, processes, between)
    scores: dict[int, FinalScores] = {}
    for (job, which), one in zip(keys, found, strict=False):
        scores.setdefault(job, {})[which] = one
    return scores


Questions = list[tuple[TrainedJob, Asked]]


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
        sizes = [job.recipe.train.eval_batch_size for job, _ in asked]
        ask = [one for _, one in asked]
        return asked, evaluate(host, ask, batch_sizes=sizes, processes=processes, between=between)
    except StopRequested:
        raise
    except Exception as error:
        if processes.sharded and not isinstance(error, PtqError | LeaveRequested):
            raise  # alone: the other ranks wait for this one in the middle of a forward
        return [], []


def _asked(host: BaseHost, job: TrainedJob, rows: Sequence[Fields], processes: Processes, *, tuned: bool) -> Asked:
    head = job.head if tuned else job.new_head(host, processes.device)
    mixture = job.recipe.train.mixture
    its_task = None if mixture is None else partial(task_of, mixture)
    return Asked(job.objective, job.folded(), head, rows, tuned, its_task)
