"""Scores of a job on a split: the texts that the base writes or chooses with the prompt, against the references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from orchestrator.tasks.metrics import score
from orchestrator.training.distributed import Processes
from orchestrator.training.objectives import Objective
from orchestrator.training.objectives.objective import Fields
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.prompt import Prompt


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
    numbers, references = objective.references(rows)
    # Inputs of similar length together: less padding. The order does not change any result.
    order = sorted(range(len(numbers)), key=lambda i: sum(map(len, rows[numbers[i]].values())))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    alike = processes.zero == 3
    mine = batches if alike else processes.share(batches)
    written: dict[int, str] = {}
    for turn in range(len(batches) if alike else -(-len(batches) // processes.world)):
        between()
        if turn < len(mine):
            fields = [rows[numbers[i]] for i in mine[turn]]
            written.update(zip(mine[turn], objective.predict(host, prompt, head, fields, tuned=tuned), strict=True))
    for other in [] if alike else processes.gather(written):
        written.update(other)
    predictions = [written[i] for i in range(len(numbers))]
    return Evaluation(score(list(objective.metrics), predictions, references), numbers, predictions, references)
