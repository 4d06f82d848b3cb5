"""Predicting rows of several jobs together: what each asks of the base, one forward for all, and what each makes of it.

A row's answer does not depend on who else is asked, as in training: rows share no position and no prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from orchestrator.recipe.judging import Judging
from orchestrator.training.objectives.objective import Fields, Objective, Share
from orchestrator.tuning.forward import forward, generate
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.prompt import Prompt
from orchestrator.tuning.rows import Row, RowBatch, Side


@dataclass(frozen=True)
class Answer:
    text: str
    probabilities: dict[str, float] | None = None  #: label -> probability, where the answer is one of given labels
    compared: str | None = None  #: what scores compare, where it is not the text

    @property
    def scored(self) -> str:
        return self.text if self.compared is None else self.compared


@runtime_checkable
class Chooses(Protocol):
    """An objective that answers with a label, from one forward."""

    reads_hidden: bool

    def questions(self, rows: Sequence[Fields], *, tuned: bool) -> list[Row]:
        """What the base is asked about each row in turn."""

    def measured(self, share: Share, head: nn.Module | None) -> Tensor:
        """One line for each question of the share."""

    def chosen(self, measured: Tensor, rows: Sequence[Fields]) -> list[Answer]:
        """The answer for each of `rows`, from the lines of all questions about them."""


@dataclass(frozen=True)
class Writing:
    """How a text is written; only what is written alike can be written together."""

    max_new_tokens: int
    ends: tuple[int, ...]
    beams: int = 1
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """As `tuning.forward.generate` takes them."""
        return {name: value for name, value in asdict(self).items() if name != "ends"}


@runtime_checkable
class Writes(Protocol):
    """An objective that answers with a text of the base's own."""

    def beginnings(self, rows: Sequence[Fields], *, tuned: bool) -> list[Row]: ...

    def writing(self, host: BaseHost) -> Writing: ...

    def text(self, ids: list[int]) -> str: ...


class Talk(Protocol):
    """What one job asks about some rows, until it knows its answers; a question may depend on the last answer."""

    def rows(self) -> Sequence[Row]:
        """What the base is asked next, each row once; none: nothing more."""

    def hear(self, share: Share, first: int) -> None:
        """What the base says to some of these rows, from `first` on. The share is not kept: logits are large."""

    def answers(self) -> list[Answer]: ...


@runtime_checkable
class Talks(Protocol):
    """An objective that reads states at places of its own, or asks several times."""

    reads_hidden: bool

    def talk(self, rows: Sequence[Fields], head: nn.Module | None, *, tuned: bool) -> Talk:
        """`tuned=False` leaves the virtual tokens out."""


@runtime_checkable
class Compares(Protocol):
    """An objective whose references are not texts: words that read alike may be different tokens."""

    def word(self, reference: str) -> str:
        """The reference as a text."""


class Predicts(Protocol):
    """An objective with a way of its own, in forwards of its own: it reads losses."""

    def predict(
        self, host: BaseHost, prompt: Prompt, head: nn.Module | None, rows: Sequence[Fields], *, tuned: bool
    ) -> list[str]:
        """The text for each row; `tuned=False` leaves the virtual tokens out."""


@dataclass(frozen=True)
class Asked:
    """Rows for one job, and the job as it answers them."""

    objective: Objective
    prompt: Prompt
    head: nn.Module | None
    rows: Sequence[Fields]
    tuned: bool = True
    judging: Judging | None = None  #: how the rows are scored; None: by the objective's metrics, all alike

    @property
    def prompt_in_use(self) -> Prompt:
        return self.prompt if self.tuned else Prompt.empty()


@torch.no_grad()
def answer(host: BaseHost, asked: Sequence[Asked], *, most: int) -> list[list[Answer]]:
    """The answers to each of `asked`, in its order; at most `most` rows in a forward."""
    found: list[list[Answer]] = [[] for _ in asked]
    talks = {number: talk for number, one in enumerate(asked) if (talk := _talk(one)) is not None}
    _ask(host, [asked[number] for number in talks], list(talks.values()), most)
    alike: dict[Writing, list[int]] = {}
    for number, one in enumerate(asked):
        if number in talks:
            found[number] = talks[number].answers()
        elif isinstance(one.objective, Writes):
            alike.setdefault(one.objective.writing(host), []).append(number)
        else:
            own = cast(Predicts, one.objective)
            texts = own.predict(host, one.prompt, one.head, one.rows, tuned=one.tuned)
            found[number] = [Answer(text) for text in texts]
    for writing, numbers in alike.items():
        for number, answers in zip(numbers, _write(host, [asked[n] for n in numbers], writing, most), strict=True):
            found[number] = answers
    return found


def softmax(names: Sequence[str], scores: Tensor) -> list[Answer]:
    """The label with the highest of its scores [rows, labels], the first where several are, for each row."""
    best, shares = scores.argmax(-1).tolist(), scores.softmax(-1).tolist()
    return [Answer(names[b], dict(zip(names, row, strict=True))) for b, row in zip(best, shares, strict=True)]


class _OneQuestion:
    """The talk of an objective that chooses."""

    def __init__(self, objective: Chooses, asked: Asked) -> None:
        self._objective, self._asked = objective, asked
        self._left: Sequence[Row] = objective.questions(asked.rows, tuned=asked.tuned)
        self._lines: list[Tensor] = []

    def rows(self) -> Sequence[Row]:
        asked, self._left = self._left, ()
        return asked

    def hear(self, share: Share, first: int) -> None:
        self._lines.append(self._objective.measured(share, self._asked.head))

    def answers(self) -> list[Answer]:
        return self._objective.chosen(torch.cat(self._lines), self._asked.rows) if self._lines else []


def _talk(asked: Asked) -> Talk | None:
    if isinstance(asked.objective, Chooses):
        return _OneQuestion(asked.objective, asked)
    if isinstance(asked.objective, Talks):
        return asked.objective.talk(asked.rows, asked.head, tuned=asked.tuned)
    return None


def _ask(host: BaseHost, asked: Sequence[Asked], talks: Sequence[Talk], most: int) -> None:
    """Everybody's questions in the same forwards, as long as anybody has some."""
    prompts = [one.prompt_in_use for one in asked]
    while any(questions := [talk.rows() for talk in talks]):
        heard = [0] * len(talks)
        for lot in _lots(questions, most):
            owners = [number for number, _ in lot]
            batch = RowBatch.collate([row for _, row in lot], pad_id=host.pad_id)  # laid out on the CPU
            output = forward(host, batch, prompts, hidden=any(asked[n].objective.reads_hidden for n in owners))
            for number in dict.fromkeys(owners):
                count = owners.count(number)
                talks[number].hear(Share.of(output, owners.index(number), range(count), count), heard[number])
                heard[number] += count


def _write(host: BaseHost, asked: Sequence[Asked], how: Writing, most: int) -> list[list[Answer]]:
    makers = [one.objective for one in asked if isinstance(one.objective, Writes)]
    beginnings = [maker.beginnings(one.rows, tuned=one.tuned) for maker, one in zip(makers, asked, strict=True)]
    found: list[list[Answer]] = [[] for _ in asked]
    for lot in _lots(beginnings, most):
        side: Side = "left" if host.kind == "causal" else "right"
        batch = RowBatch.collate([row for _, row in lot], pad_id=host.pad_id, side=side)
        prompts = [one.prompt_in_use for one in asked]
        ids = generate(host, batch, prompts, eos_token_ids=how.ends, **how.settings)
        for (number, _), written in zip(lot, ids, strict=True):
            found[number].append(Answer(makers[number].text(written)))
    return found


def _lots(rows: Sequence[Sequence[Row]], most: int) -> Iterator[list[tuple[int, Row]]]:
    """(owner, row), at most `most` at a time, the rows of an owner side by side; each row with its owner's prompt."""
    owned = [(number, replace(row, prompt=number)) for number, theirs in enumerate(rows) for row in theirs]
    for start in range(0, len(owned), most):
        yield owned[start : start + most]
