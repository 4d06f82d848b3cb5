"""The stretch of a context that answers: a linear score for its first and its last token (Devlin et al. 2019, §5.2).

Contexts that are too long become windows that overlap; a row is trained on the first window that holds its answer, and
answered from the best of all. With `unanswerable`, a row without an answer points at its opening token (SQuAD 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from orchestrator.errors import BadData
from orchestrator.recipe.tasks import Span
from orchestrator.tasks.answers import or_none
from orchestrator.tasks.lists import answers
from orchestrator.tasks.usable import place_of
from orchestrator.training.objectives.asking import Answer
from orchestrator.training.objectives.linear import dropped, head_scores, new_linear
from orchestrator.training.objectives.objective import Example, Fields, Share, all_rows, nothing_shown, widened
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.rows import Row
from orchestrator.tuning.transfer import numbers


@dataclass(frozen=True)
class Window:
    row: Row
    opening: int  #: place of the row's opening token among its states: no answer
    first: int  #: place of its first token of context
    characters: list[tuple[int, int]]  #: of the context, for each of its tokens here


@dataclass
class Found:
    """Rows being answered, each from the best of its windows."""

    windows: list[tuple[int, Window]]  #: (row, one of its windows)
    contexts: list[str]
    best: Callable[[Tensor, Window, str], tuple[float, str]]
    asked: bool = False
    found: dict[int, tuple[float, str]] = field(default_factory=dict)  #: row -> (score, text)

    def rows(self) -> list[Row]:
        left = [] if self.asked else [window.row for _, window in self.windows]
        self.asked = True
        return left

    def hear(self, share: Share, first: int) -> None:
        assert share.hidden is not None
        for states, (row, window) in zip(share.hidden, self.windows[first:], strict=False):
            scored = self.best(states, window, self.contexts[row])
            self.found[row] = max(self.found.get(row, scored), scored, key=lambda pair: pair[0])

    def answers(self) -> list[Answer]:
        return [Answer(self.found[row][1]) for row in range(len(self.contexts))]


class SpanFinding:
    reads_hidden = True

    def __init__(self, task: Span, encoder: TextEncoder) -> None:
        self._task, self._encoder = task, encoder
        self.metrics = task.metrics
        self.usable, self.shown = all_rows, nothing_shown

    def head(self, host: BaseHost) -> nn.Module | None:
        """Linear [H] -> [first, last]."""
        return new_linear(host, 2)

    def example(self, fields: Fields) -> Example:
        windows = self._windows(fields, tuned=True)
        found = answers(self._encoder.plain(self._task.answers, fields))
        if not found and not self._task.unanswerable:
            raise BadData("a row has no answer", hint="write task.unanswerable: true where rows may have none")
        if not found:
            place = windows[0].opening
            return Example(windows[0].row, units=1, targets=(place, place), places=self._allowed(windows[0]))
        start, end = self._characters(fields, *found[0])
        for window in windows:
            inside = [i for i, (a, b) in enumerate(window.characters) if a < end and b > start]
            whole = inside and window.characters[inside[0]][0] <= start and window.characters[inside[-1]][1] >= end
            if whole:
                targets = window.first + inside[0], window.first + inside[-1]
                return Example(window.row, units=1, targets=targets, places=self._allowed(window))
        raise BadData(f"the answer {found[0][0]!r} fits no window", hint="raise task.stride or task.max_input_tokens")

    def loss_sum(self, share: Share, examples: Sequence[Example], head: nn.Module | None) -> Tensor:
        """The mean of the two cross entropies, over the context's tokens and the opening one.

        Without the head's bias: it adds the same to all places, so no loss depends on it. What would reach it as its
        gradient is rounding, and Adam makes steps as large as the rate of that.
        """
        assert share.hidden is not None
        assert isinstance(head, nn.Linear)
        hidden = dropped(share.hidden, share, self._task.head.dropout)
        total = hidden.new_zeros((), dtype=torch.float32)
        for number, example in enumerate(examples):
            scores = linear(widened(hidden[number, numbers(example.places, hidden.device)]), head.weight)
            wanted = numbers([example.places.index(place) for place in example.targets], scores.device)
            total = total + cross_entropy(scores.T, wanted)
        return total

    def talk(self, rows: Sequence[Fields], head: nn.Module | None, *, tuned: bool) -> Found:
        windows = [(n, window) for n, fields in enumerate(rows) for window in self._windows(fields, tuned=tuned)]
        contexts = [self._encoder.plain(self._task.context, fields) for fields in rows]

        def best(states: Tensor, window: Window, context: str) -> tuple[float, str]:
            return self._best(head_scores(head, states[list(self._allowed(window))]), window, context)

        return Found(windows, contexts, best)

    def references(self, rows: Sequence[Fields]) -> tuple[list[int], list[list[str]]]:
        short = self._encoder.room(self._task.max_input_tokens, 0) < self._task.max_input_tokens
        for fields in rows:
            if not self._encoder.plain(self._task.context, fields).strip():
                raise BadData("a row's context is empty")
            if short:  # else the question, half of what there is at most, always leaves the other half
                self._head(fields, tuned=True)
        found = [[text for text, _ in answers(self._encoder.plain(self._task.answers, f))] for f in rows]
        found = [or_none(texts) if self._task.unanswerable else texts or [""] for texts in found]
        return list(range(len(rows))), found

    def _best(self, scores: Tensor, window: Window, context: str) -> tuple[float, str]:
        """[places, 2] -> (score of the best answer, against none where there may be none; its text)."""
        none, scores = (scores[0].sum(), scores[1:]) if self._task.unanswerable else (scores.new_zeros(()), scores)
        sums = scores[:, None, 0] + scores[None, :, 1]
        size = len(sums)
        near = torch.ones(size, size, dtype=torch.bool, device=sums.device)
        sums = sums.masked_fill(~(near.triu() & near.tril(self._task.max_answer_tokens - 1)), float("-inf"))
        value, at = sums.flatten().max(0)
        over = float(value - none)
        first, last = divmod(int(at), size)
        text = context[window.characters[first][0] : window.characters[last][1]].strip()
        return (over, text) if over > 0 or not self._task.unanswerable else (0.0, "")

    def _allowed(self, window: Window) -> tuple[int, ...]:
        """The places that a span may point at: no answer where there may be none, then the context's tokens."""
        context = range(window.first, window.first + len(window.characters))
        return (window.opening, *context) if self._task.unanswerable else tuple(context)

    def _characters(self, fields: Fields, text: str, start: int | None) -> tuple[int, int]:
        return place_of(text, start, self._encoder.plain(self._task.context, fields))

    def _head(self, fields: Fields, *, tuned: bool) -> tuple[list[int], int]:
        """What stands before the context, and how many of its tokens fit behind."""
        opening, between, closing = self._encoder.frame(tuned=tuned)
        question = self._encoder.input_ids(
            self._task.input, fields, limit=self._task.max_input_tokens // 2, tuned=tuned
        )
        head = [*question[: len(question) - len(closing)], *between]
        texts = self._task.max_input_tokens - (len(head) - len(opening) - len(between))
        room = self._encoder.room(texts, len(head) + len(closing))
        if room < 1:
            raise BadData("the question leaves no room for the context")
        return head, room

    def _windows(self, fields: Fields, *, tuned: bool) -> list[Window]:
        head, room = self._head(fields, tuned=tuned)
        closing = self._encoder.frame(tuned=tuned)[2]
        tokens, characters = self._encoder.tokens_at(self._encoder.plain(self._task.context, fields))
        if not tokens:
            raise BadData("a row's context is empty")
        before = next((i for i, token in enumerate(head) if token >= 0), len(head))
        opening, first = (self._encoder.states_before(head[:end]) for end in (before, len(head)))
        windows = []
        for start in range(0, len(tokens), max(1, room - self._task.stride)):
            part = slice(start, start + room)
            row = self._encoder.reading([*head, *tokens[part], *closing])
            windows.append(Window(row, opening, first, characters[part]))
            if start + room >= len(tokens):
                break
        return windows
