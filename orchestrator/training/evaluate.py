"""Scores of a job on a split: the texts that the base writes or chooses with the prompt, against the references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from orchestrator.errors import PtqError
from orchestrator.tasks.metrics import score
from orchestrator.training.distributed import Processes
from orchestrator.training.objectives import Objective
from orchestrator.training.objectives.asking import Asked, answer
from orchestrator.training.objectives.objective import Fields
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.prompt import Prompt

TOGETHER = 4  #: batches of the largest of the jobs that score together, at most, in a forward: what memory allows


@dataclass(frozen=True)
class Evaluation:
    values: dict[str, float]
    numbers: list[int]  #: of the predicted rows
    predictions: list[str]
    references: list[list[str]]


@torch.no_grad()
def evaluate(
    host: BaseHost,
    objective: Objective,
    prompt: Prompt,
    head: nn.Module | None,
    rows: Sequence[Fields],
    *,
    batch_size: int,
    processes: Processes,
    tuned: bool = True,
    between: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Predict every distinct input of `rows` and score.

    `between` is called before each batch, on all ranks equally often.

    Ranks share the batches; with a sharded base (ZeRO-3) every rank must run every forward, so all do all of them.
    """
    plan = _Plan.of(objective, rows, batch_size)
    alike = processes.zero == 3
    mine = plan.batches if alike else processes.share(plan.batches)
    written: dict[int, str] = {}
    fault: PtqError | None = None
    for turn in range(len(plan.batches) if alike else -(-len(plan.batches) // processes.world)):
        between()
        if turn < len(mine) and fault is None:
            try:
                texts = objective.predict(host, prompt, head, plan.fields(mine[turn]), tuned=tuned)
            except PtqError as error:
                if alike:
                    raise
                fault = error  # the other ranks, which do not see this row, have to hear of it
            else:
                written.update(zip(mine[turn], texts, strict=True))
    for other, theirs in [] if alike else processes.gather((written, fault)):
        if theirs is not None:
            raise theirs
        written.update(other)
    return plan.scored(objective, written)


def evaluate_together(
    host: BaseHost, asked: Sequence[Asked], *, batch_sizes: Sequence[int], between: Callable[[], None] = lambda: None
) -> list[Evaluation]:
    """Several jobs' rows in the same forwards, a batch of each at a time; what each would score by itself.

    In one process. A small base spends most of an evaluation on starting operations, of which this starts fewer.
    """
    plans = [_Plan.of(one.objective, one.rows, size) for one, size in zip(asked, batch_sizes, strict=True)]
    written: list[dict[int, str]] = [{} for _ in asked]
    for turn in range(max(len(plan.batches) for plan in plans)):
        between()
        present = [number for number, plan in enumerate(plans) if turn < len(plan.batches)]
        parts = [replace(asked[number], rows=plans[number].fields(plans[number].batches[turn])) for number in present]
        for number, answers in zip(present, answer(host, parts, most=TOGETHER * max(batch_sizes)), strict=True):
            texts = [one.text for one in answers]
            written[number].update(zip(plans[number].batches[turn], texts, strict=True))
    return [plan.scored(one.objective, texts) for plan, one, texts in zip(plans, asked, written, strict=True)]


@dataclass(frozen=True)
class _Plan:
    """Which rows are predicted, in which batches, against what."""

    rows: Sequence[Fields]
    numbers: list[int]  #: of the rows to predict
    references: list[list[str]]
    batches: list[list[int]]  #: of places in `numbers`

    @classmethod
    def of(cls, objective: Objective, rows: Sequence[Fields], batch_size: int) -> _Plan:
        numbers, references = objective.references(rows)
        # Inputs of similar length together: less padding. The order does not change any result.
        order = sorted(range(len(numbers)), key=lambda i: sum(map(len, rows[numbers[i]].values())))
        return cls(rows, numbers, references, [order[i : i + batch_size] for i in range(0, len(order), batch_size)])

    def fields(self, batch: Sequence[int]) -> list[Fields]:
        return [self.rows[self.numbers[i]] for i in batch]

    def scored(self, objective: Objective, written: Mapping[int, str]) -> Evaluation:
        predictions = [written[i] for i in range(len(self.numbers))]
        values = score(list(objective.metrics), predictions, self.references)
        return Evaluation(values, self.numbers, predictions, self.references)
