"""Scores of a job on a split: the texts that the base writes or chooses with the prompt, against the references."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from orchestrator.errors import PtqError
from orchestrator.tasks.metrics import score
from orchestrator.training.distributed import Processes
from orchestrator.training.failures import JobFailed, hear, may_tell, met_by_all, out_of_memory, reason_of, tell
from orchestrator.training.kept import KeptAnswers, Said
from orchestrator.training.objectives.asking import Asked, Compares, answer
from orchestrator.training.objectives.objective import Fields
from orchestrator.training.parts import values_of
from orchestrator.tuning.host import BaseHost

Between = Callable[[], None]  #: may raise, on all ranks together

TOGETHER = 4  #: batches of the largest of the jobs that score together, at most, in a forward: what memory allows


@dataclass(frozen=True)
class Evaluation:
    values: dict[str, float]
    numbers: list[int]  #: of the predicted rows
    predictions: list[str]
    references: list[list[str]]  #: as texts


def evaluate(
    host: BaseHost,
    asked: Sequence[Asked],
    *,
    batch_sizes: Sequence[int],
    processes: Processes,
    between: Between = lambda: None,
    kept: Sequence[KeptAnswers] = (),
) -> list[Evaluation]:
    """Predict every distinct input of each job's rows, and score: what each would score by itself.

    Rows of several jobs share forwards, a batch of each at a time: a small base spends most of an evaluation on
    starting operations, of which this starts fewer. `between` is called before each, on all ranks equally often; where
    it raises, what was answered so far is `kept`, and the next evaluation of the same goes on behind it.

    Ranks share the batches, but for a sharded base (ZeRO-3), where all do all; what one rank meets is raised on all.
    """
    plans = [_Plan.of(one, size) for one, size in zip(asked, batch_sizes, strict=True)]
    known = _known(kept, plans, processes)
    left = [plan.without(found) for plan, found in zip(plans, known, strict=True)]
    mine = [_of_this_rank(batches, number, processes) for number, batches in enumerate(left)]
    written: list[dict[int, Said]] = [{} for _ in asked]
    fault: Exception | None = None
    for turn in range(max(_turns(batches, processes) for batches in left)):
        try:
            between()
        except Exception:
            _keep(kept, known, _everybodys(written, processes, None), processes)
            raise
        try:
            if fault is None:
                _answer_turn(host, asked, plans, [own[turn : turn + 1] for own in mine], written, processes)
        except Exception as error:
            if not may_tell(processes, error) or processes.sharded:
                raise
            traceback.clear_frames(error.__traceback__)
            fault = error  # the other ranks, which do not see this row, have to hear of it
    found = _everybodys(written, processes, fault)
    _keep([one for one in kept if one.final], known, found, processes)
    texts = [before | now for before, now in zip(known, found, strict=True)]
    return [plan.scored(one, said) for plan, one, said in zip(plans, asked, texts, strict=True)]


def _everybodys(
    written: Sequence[dict[int, Said]], processes: Processes, fault: Exception | None
) -> list[dict[int, Said]]:
    """The answers of all ranks. On all ranks."""
    if processes.sharded:
        return list(written)
    told = processes.gather((written, tell(fault)))
    hear([theirs for _, theirs in told], fault)
    found: list[dict[int, Said]] = [{} for _ in written]
    for others, _ in told:
        for own, other in zip(found, others, strict=True):
            own.update(other)
    return found


def _known(kept: Sequence[KeptAnswers], plans: Sequence[_Plan], processes: Processes) -> list[dict[int, Said]]:
    """What an earlier evaluation has left; the first rank reads it for all."""
    if not kept:
        return [{} for _ in plans]
    found: list[dict[int, Said]] = processes.gather([one.read() for one in kept] if processes.first else None)[0]
    return found


def _keep(
    kept: Sequence[KeptAnswers],
    known: Sequence[dict[int, Said]],
    found: Sequence[dict[int, Said]],
    processes: Processes,
) -> None:
    """The first rank writes; what it meets, the others hear of."""
    if not kept:
        return
    with met_by_all(processes):
        for one, before, now in zip(kept, known, found, strict=True):
            if processes.first and now:
                one.write(before | now)


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
    written: Sequence[dict[int, Said]],
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


def _texts(host: BaseHost, parts: Sequence[Asked], most: int, processes: Processes) -> list[list[Said]]:
    """At most `most` rows in a forward; half of it, and half of the rows, where memory runs out."""
    try:
        return [[(one.text, one.scored) for one in answers] for answers in answer(host, parts, most=most)]
    except Exception as error:
        longest = max(len(part.rows) for part in parts)
        if processes.sharded or not out_of_memory(error) or max(longest, most) == 1:
            raise
    if processes.device.type == "cuda":
        torch.cuda.empty_cache()
    texts: list[list[Said]] = [[] for _ in parts]
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

    def without(self, known: Collection[int]) -> list[list[int]]:
        """The batches that are not answered yet, each as it would be without what is known."""
        return [batch for batch in self.batches if not all(place in known for place in batch)]

    def scored(self, asked: Asked, written: Mapping[int, Said]) -> Evaluation:
        said = [written[i] for i in range(len(self.numbers))]
        try:
            values = self._values(asked, [compared for _, compared in said])
        except PtqError:
            raise
        except Exception as error:  # met by all ranks: they have the same answers
            raise JobFailed(reason_of(error), f"the answers cannot be scored: {error}") from error
        references = self.references
        if isinstance(asked.objective, Compares):
            references = [[asked.objective.word(one) for one in row] for row in references]
        return Evaluation(values, self.numbers, [text for text, _ in said], references)

    def _values(self, asked: Asked, compared: Sequence[str]) -> dict[str, float]:
        if asked.judging is None:
            return score(asked.objective.metrics, compared, self.references)
        return values_of(asked.judging, [self.rows[number] for number in self.numbers], compared, self.references)
