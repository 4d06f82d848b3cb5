"""Scores of a job on a split: the texts that the base writes or chooses with the prompt, against the references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch

from orchestrator.tasks.metrics import score
from orchestrator.training.distributed import Processes
from orchestrator.training.failures import hear, may_tell, out_of_memory, tell
from orchestrator.training.mixture import task_names
from orchestrator.training.objectives.asking import Asked, answer
from orchestrator.training.objectives.objective import Fields
from orchestrator.tuning.host import BaseHost

TOGETHER = 4  #: batches of the largest of the jobs that score together, at most, in a forward: what memory allows


@dataclass(frozen=True)
class Evaluation:
    values: dict[str, float]
    numbers: list[int]  #: of the predicted rows
    predictions: list[str]
    references: list[list[str]]


def evaluate(
    host: BaseHost,
    asked: Sequence[Asked],
    *,
    batch_sizes: Sequence[int],
    processes: Processes,
    between: Callable[[], None] = lambda: None,
) -> list[Evaluation]:
    """Predict every distinct input of each job's rows, and score: what each would score by itself.

    Rows of several jobs share forwards, a batch of each at a time: a small base spends most of an evaluation on
    starting operations, of which this starts fewer. `between` is called before each, on all ranks equally often.

    Ranks share the batches; with a sharded base (ZeRO-3) every rank must run every forward, so all do all of them. An
    error that one rank meets is raised on all.
    """
    plans = [_Plan.of(one, size) for one, size in zip(asked, batch_sizes, strict=True)]
    mine = [_of_this_rank(plan.batches, number, processes) for number, plan in enumerate(plans)]
    written: list[dict[int, str]] = [{} for _ in asked]
    fault: Exception | None = None
    for turn in range(max(_turns(plan.batches, processes) for plan in plans)):
        between()
        try:
            if fault is None:
                _answer_turn(host, asked, plans, [own[turn : turn + 1] for own in mine], written, processes)
        except Exception as error:
            if not may_tell(processes, error) or processes.sharded:
                raise
            fault = error  # the other ranks, which do not see this row, have to hear of it
    if not processes.sharded:
        told = processes.gather((written, tell(fault)))
        hear([theirs for _, theirs in told], fault)
        for others, _ in told:
            for own, other in zip(written, others, strict=True):
                own.update(other)
    return [plan.scored(one, texts) for plan, one, texts in zip(plans, asked, written, strict=True)]


def _of_this_rank(batches: Sequence[list[int]], number: int, processes: Processes) -> list[list[int]]:
    """Every job begins with another rank: where each has few batches, no rank gets them all."""
    if processes.sharded:
        return list(batches)
    return list(batches[(processes.rank - number) % processes.world :: processes.world])


def _turns(batches: Sequence[list[int]], processes: Processes) -> int:
    return len(batches) if processes.sharded else -(-len(batches) // processes.world)


@torch.no_grad()
def _answer_turn(
    host: BaseHost,
    asked: Sequence[Asked],
    plans: Sequence[_Plan],
    batches: Sequence[Sequence[list[int]]],
    written: Sequence[dict[int, str]],
    processes: Processes,
) -> None:
    """One batch of each job that has one left."""
    present = [number for number, own in enumerate(batches) if own]
    if not present:
        return
    parts = [replace(asked[number], rows=plans[number].fields(batches[number][0])) for number in present]
    most = min(TOGETHER, len(parts)) * max(len(part.rows) for part in parts)
    for number, texts in zip(present, _texts(host, parts, most, processes), strict=True):
        written[number].update(zip(batches[number][0], texts, strict=True))


def _texts(host: BaseHost, parts: Sequence[Asked], most: int, processes: Processes) -> list[list[str]]:
    """At most `most` rows in a forward; half of it, and half of the rows, where memory runs out."""
    try:
        return [[one.text for one in answers] for answers in answer(host, parts, most=most)]
    except Exception as error:
        longest = max(len(part.rows) for part in parts)
        if processes.sharded or not out_of_memory(error) or max(longest, most) == 1:
            raise
    if processes.device.type == "cuda":
        torch.cuda.empty_cache()
    texts: list[list[str]] = [[] for _ in parts]
    half = -(-longest // 2)
    for cut in (slice(half), slice(half, None)):
        some = [(n, replace(part, rows=part.rows[cut])) for n, part in enumerate(parts) if part.rows[cut]]
        if some:
            found = _texts(host, [part for _, part in some], max(1, most // 2), processes)
            for (number, _), more in zip(some, found, strict=True):
                texts[number] += more
    return texts


@dataclass(frozen=True)
class _Plan:
    """Which rows are predicted, in which batches, against what."""

    rows: Sequence[Fields]
    numbers: list[int]  #: of the rows to predict
    references: list[list[str]]
    batches: list[list[int]]  #: of places in `numbers`

    @classmethod
    def of(cls, asked: Asked, batch_size: int) -> _Plan:
        rows = asked.rows
        numbers, references = asked.objective.references(rows)
        # Inputs of similar length together: less padding. The order does not change any result.
        order = sorted(range(len(numbers)), key=lambda i: sum(map(len, rows[numbers[i]].values())))
        return cls(rows, numbers, references, [order[i : i + batch_size] for i in range(0, len(order), batch_size)])

    def fields(self, batch: Sequence[int]) -> list[Fields]:
        return [self.rows[self.numbers[i]] for i in batch]

    def scored(self, asked: Asked, written: Mapping[int, str]) -> Evaluation:
        predictions, names = [written[i] for i in range(len(self.numbers))], list(asked.objective.metrics)
        if asked.task_of is None:
            values = score(names, predictions, self.references)
        else:
            tasks = [asked.task_of(self.rows[number]) for number in self.numbers]
            values = _by_task(names, predictions, self.references, tasks)
        return Evaluation(values, self.numbers, predictions, self.references)


def _by_task(
    names: Sequence[str], predictions: Sequence[str], references: Sequence[list[str]], tasks: Sequence[str]
) -> dict[str, float]:
    """Each score of each task (`accuracy:rte`), and under its plain name the mean over tasks, large and small alike."""
    values: dict[str, float] = {}
    each = []
    for task, called in sorted(task_names(tasks).items()):
        mine = [i for i, its in enumerate(tasks) if its == task]
        each.append(score(names, [predictions[i] for i in mine], [references[i] for i in mine]))
        values |= {f"{name}:{called}": value for name, value in each[-1].items()}
    return {name: fmean(one[name] for one in each) for name in names} | values
