"""Scores do not depend on the batch size, the order of rows, or the number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score
from training_fixtures import recipe

from orchestrator.errors import BadData, PtqError
from orchestrator.recipe.judging import Judging
from orchestrator.recipe.schema import Recipe
from orchestrator.states import Reason
from orchestrator.training.distributed import Processes
from orchestrator.training.evaluate import Evaluation, evaluate
from orchestrator.training.failures import out_of_memory, reason_of
from orchestrator.training.objectives.asking import Asked
from orchestrator.tuning import Prompt


@dataclass
class Echo:
    """An objective that predicts a row's own text, and notes what it was asked."""

    metrics: Sequence[str] = ("exact_match",)
    batches: list[list[str]] = field(default_factory=list)
    grouped: bool = False

    def references(self, rows: Sequence[dict[str, str]]) -> tuple[list[int], list[list[str]]]:
        numbers = [i for i in range(len(rows)) if not self.grouped or i % 2 == 0]
        return numbers, [[rows[i]["text"] if i % 3 else "other"] for i in numbers]

    def predict(self, host: Any, prompt: Any, head: Any, rows: Sequence[dict[str, str]], *, tuned: bool) -> list[str]:
        assert not torch.is_grad_enabled()
        self.batches.append([row["text"] for row in rows])
        return [row["text"] for row in rows]


def processes(rank: int = 0, world: int = 1, zero: int | None = None) -> Processes:
    nothing: Any = None
    return Processes(nothing, rank, world, torch.device("cpu"), zero)


ROWS = [{"text": "x" * (7 * i % 11) + str(i)} for i in range(10)]


def scored(objective: Any, size: int, group: Processes, **options: Any) -> Evaluation:
    host: Any = None
    asked = Asked(objective, Prompt.empty(), None, ROWS)
    return evaluate(host, [asked], batch_sizes=[size], processes=group, **options)[0]


@pytest.mark.parametrize("size", [1, 3, 10, 99])
def test_the_result_is_in_the_order_of_the_rows(size: int) -> None:
    objective = Echo()
    result = scored(objective, size, processes())
    assert result.predictions == [row["text"] for row in ROWS]
    assert result.values == {"exact_match": 0.6}
    assert max(map(len, objective.batches)) == min(size, 10)
    lengths = [len(text) for batch in objective.batches for text in batch]
    assert lengths == sorted(lengths)  # little padding


def test_an_input_of_several_rows_is_predicted_once() -> None:
    objective = Echo(grouped=True)
    result = scored(objective, 4, processes())
    assert result.numbers == [0, 2, 4, 6, 8]
    assert sum(map(len, objective.batches)) == 5


class Labels(Echo):
    """It answers with a row's own label, but in every fourth row."""

    def references(self, rows: Sequence[dict[str, str]]) -> tuple[list[int], list[list[str]]]:
        return list(range(len(rows))), [[row["label"]] for row in rows]

    def predict(self, host: Any, prompt: Any, head: Any, rows: Sequence[dict[str, str]], *, tuned: bool) -> list[str]:
        return [row["label"] if int(row["text"]) % 4 else "another" for row in rows]


def test_each_task_of_a_mixture_has_a_positive_label_of_its_own() -> None:
    """`true` is not the positive one of `no` and `yes`, whatever the alphabet says of all four. `another` is neither,
    and so the wrong one."""
    pairs = {"a": ("false", "true"), "b": ("no", "yes")}
    rows = [
        {"text": str(i), "task": task, "label": labels[i % 3 == 0]} for i in range(12) for task, labels in pairs.items()
    ]
    host: Any = None
    objective: Any = Labels(metrics=("positive_f1",))
    task = {"type": "classify", "input": "{text}", "labels": ["false", "no", "true", "yes"], "metrics": ["positive_f1"]}
    made = recipe({"type": "prompt-tuning"}, task=task, train__mixture={"by": "{task}"})
    asked = Asked(objective, Prompt.empty(), None, rows, True, Judging(Recipe.model_validate(made)))
    (found,) = evaluate(host, [asked], batch_sizes=[5], processes=processes())
    wanted = [i % 3 == 0 for i in range(12)]
    expected = f1_score(wanted, [is_it == (i % 4 > 0) for i, is_it in enumerate(wanted)])
    assert 0 < expected < 1
    assert found.values == {"positive_f1": expected, "positive_f1:a": expected, "positive_f1:b": expected}


@pytest.mark.parametrize("zero", [None, 3])
@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_share_the_batches_and_pause_equally_often(
    world: int, zero: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`between` is a collective: a rank that calls it less often would hang all others."""
    written: list[Any] = []
    pauses: list[int] = []
    asked: list[str] = []
    monkeypatch.setattr(Processes, "gather", lambda _self, value: written.append(value) or list(written))
    for rank in range(world):
        objective, count = Echo(), [0]

        def between(count: list[int] = count) -> None:
            count[0] += 1

        try:
            result = scored(objective, 3, processes(rank, world, zero), between=between)
        except KeyError:
            assert rank < world - 1  # the others' predictions are not there yet
        pauses.append(count[0])
        asked += [text for batch in objective.batches for text in batch]
    assert result.predictions == [row["text"] for row in ROWS]
    assert len(set(pauses)) == 1
    once = sorted(row["text"] for row in ROWS)
    assert sorted(asked) == (sorted(once * world) if zero == 3 else once)


class Refusing(Echo):
    def predict(self, host: Any, prompt: Any, head: Any, rows: Sequence[dict[str, str]], *, tuned: bool) -> list[str]:
        if any(row["text"].endswith("9") for row in rows):
            raise BadData("a row's context is empty")
        return super().predict(host, prompt, head, rows, tuned=tuned)


def test_a_row_that_one_rank_refuses_ends_the_evaluation_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rank that meets it still takes part in what all ranks do together, and all hear of it there."""
    told: list[Any] = []
    monkeypatch.setattr(Processes, "gather", lambda _self, value: told.append(value) or list(told))
    pauses = [0, 0]
    order = sorted(range(2), key=lambda rank: any("9" in text for text in texts_of(rank)), reverse=True)
    for rank in order:

        def between(rank: int = rank) -> None:
            pauses[rank] += 1

        with pytest.raises(PtqError, match="context is empty") as caught:
            scored(Refusing(), 3, processes(rank, 2), between=between)
        assert reason_of(caught.value) is Reason.BAD_DATA
    assert len(told) == 2
    assert pauses[0] == pauses[1]


def texts_of(rank: int) -> list[str]:
    """What a rank of two is asked."""
    asked = Echo()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Processes, "gather", lambda _self, value: [([dict.fromkeys(range(len(ROWS)), ("", ""))], None)])
        scored(asked, 3, processes(rank, 2))
    return [text for batch in asked.batches for text in batch]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_jobs_that_are_scored_together_are_shared_among_the_ranks(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three jobs of one batch each: every rank has one, and all scores are those of each job by itself."""
    kinds = [Echo(), Echo(grouped=True), Echo()]
    expected = [scored(one, 99, processes()) for one in kinds]
    written: list[Any] = []
    monkeypatch.setattr(Processes, "gather", lambda _self, value: written.append(value) or list(written))
    host: Any = None
    for rank in range(world):
        jobs = [Echo(grouped=one.grouped) for one in kinds]
        asked = [Asked(one, Prompt.empty(), None, ROWS) for one in jobs]
        try:
            found = evaluate(host, asked, batch_sizes=[99] * 3, processes=processes(rank, world))
        except KeyError:
            assert rank < world - 1
        assert sum(len(one.batches) for one in jobs) == {1: [3], 2: [2, 1], 3: [1, 1, 1]}[world][rank]
    assert found == expected


@dataclass
class Greedy(Echo):
    """Has memory for so many rows."""

    room: int = 2

    def predict(self, host: Any, prompt: Any, head: Any, rows: Sequence[dict[str, str]], *, tuned: bool) -> list[str]:
        if len(rows) > self.room:
            said = "DefaultCPUAllocator: can't allocate memory"
            raise torch.OutOfMemoryError("CUDA") if len(self.batches) % 2 else RuntimeError(said)
        return super().predict(host, prompt, head, rows, tuned=tuned)


@pytest.mark.parametrize("size", [2, 3, 7, 10])
def test_an_evaluation_that_runs_out_of_memory_goes_on_in_halves(size: int) -> None:
    objective = Greedy()
    result = scored(objective, size, processes())
    assert result.predictions == [row["text"] for row in ROWS]
    assert sum(map(len, objective.batches)) == len(ROWS)


def test_an_evaluation_whose_single_row_does_not_fit_ends() -> None:
    with pytest.raises(RuntimeError, match="allocate memory"):
        scored(Greedy(room=0), 3, processes())


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
    ],
)
def test_what_wants_memory_is_told_from_other_faults(error: Exception, full: bool) -> None:
    assert out_of_memory(error) is full
