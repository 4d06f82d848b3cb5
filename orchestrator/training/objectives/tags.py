"""A tag for every word: a linear classifier on the last hidden state of the word's first token (Devlin et al. 2019,
§5.3; P-tuning v2 tags so). On a causal base on that of its last token, the first that has read the whole word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from orchestrator.errors import BadData
from orchestrator.recipe.tasks import Tag
from orchestrator.tasks.lists import listed
from orchestrator.tasks.template import Field, Text, Virtual, parse
from orchestrator.tasks.usable import words_and_tags
from orchestrator.training.cuts import note
from orchestrator.training.objectives.asking import Answer
from orchestrator.training.objectives.linear import dropped, head_scores, new_linear
from orchestrator.training.objectives.objective import Example, Fields, Share, all_rows, nothing_shown
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.rows import Row
from orchestrator.tuning.transfer import numbers


@dataclass
class Tagged:
    """Rows being tagged."""

    head: nn.Module | None
    left: Sequence[Row]
    places: list[list[int]]  #: of each row's words
    words: list[int]  #: how many each row has
    told: Callable[[Sequence[int], int], Answer]
    found: list[Answer] = field(default_factory=list)

    def rows(self) -> Sequence[Row]:
        asked, self.left = self.left, ()
        return asked

    def hear(self, share: Share, first: int) -> None:
        assert share.hidden is not None
        for number, states in enumerate(share.hidden, start=first):
            places = self.places[number]
            best = head_scores(self.head, states[places]).argmax(-1).tolist() if places else []
            self.found.append(self.told(best, self.words[number]))

    def answers(self) -> list[Answer]:
        return self.found


class Tagging:
    reads_hidden = True

    def __init__(self, task: Tag, encoder: TextEncoder) -> None:
        self._task, self._encoder = task, encoder
        self._template = parse(task.input)
        self._number = {name: number for number, name in enumerate(task.labels)}
        self._beyond = "O" if "O" in self._number else task.labels[0]
        self.metrics = task.metrics
        self.usable, self.shown = all_rows, nothing_shown

    def head(self, host: BaseHost) -> nn.Module | None:
        """Linear [H] -> [tags]."""
        return new_linear(host, len(self._task.labels))

    def example(self, fields: Fields) -> Example:
        tags = self._tags(fields)
        row, places = self._row(fields, tuned=True)
        if not places:
            raise BadData("a row has no word, or none that fits the base's context")
        numbers = tuple(self._number[tag] for tag in tags[: len(places)])
        return Example(row, units=len(places), targets=numbers, places=tuple(places))

    def loss_sum(self, share: Share, examples: Sequence[Example], head: nn.Module | None) -> Tensor:
        assert share.hidden is not None
        hidden = dropped(share.hidden, share, self._task.head.dropout)
        places = [(i, place) for i, example in enumerate(examples) for place in example.places]
        row, column = numbers(places, hidden.device).unbind(1)
        targets = numbers([number for example in examples for number in example.targets], hidden.device)
        return cross_entropy(head_scores(head, hidden[row, column]), targets, reduction="sum")

    def talk(self, rows: Sequence[Fields], head: nn.Module | None, *, tuned: bool) -> Tagged:
        made = [self._row(fields, tuned=tuned) for fields in rows]
        words = [len(listed(fields[self._task.words])) for fields in rows]
        return Tagged(head, [row for row, _ in made], [places for _, places in made], words, self._told)

    def references(self, rows: Sequence[Fields]) -> tuple[list[int], list[list[str]]]:
        return list(range(len(rows))), [[" ".join(self._tags(fields))] for fields in rows]

    def _told(self, best: Sequence[int], words: int) -> Answer:
        """Words that had no room count as outside."""
        return Answer(" ".join([*(self._task.labels[i] for i in best), *[self._beyond] * (words - len(best))]))

    def _tags(self, fields: Fields) -> list[str]:
        _, tags = words_and_tags(fields[self._task.words], self._encoder.plain(self._task.tags, fields))
        unknown = next((tag for tag in tags if tag not in self._number), None)
        if unknown is not None:
            raise BadData(f"a row has the tag {unknown!r}, which is not among task.labels")
        return tags

    def _row(self, fields: Fields, *, tuned: bool) -> tuple[Row, list[int]]:
        """The row, and the place of each word's first token; words beyond the limit have none."""
        ids, _, closing = self._encoder.frame(tuned=tuned)
        places: list[int] = []
        room = self._encoder.room(self._task.max_input_tokens, len(ids) + len(closing) + self._template.virtual_tokens)
        for part in self._template.parts:
            if isinstance(part, Virtual):
                ids += [-(part.start + i) - 1 for i in range(part.count)] if tuned else []
            elif isinstance(part, Field) and part.name == self._task.words:
                for word in listed(fields[part.name]):
                    tokens = self._encoder.tokens(" " + word) or [self._encoder.unknown or 0]
                    room -= len(tokens)
                    if room < 0:
                        note("input")
                        break
                    first = self._encoder.states_before(ids)
                    places.append(first + len(tokens) - 1 if self._encoder.kind == "causal" else first)
                    ids += tokens
            else:
                text = fields[part.name] if isinstance(part, Field) else part.text if isinstance(part, Text) else ""
                tokens = self._encoder.tokens(text)[: max(0, room)]
                room -= len(tokens)
                ids += tokens
        return self._encoder.reading([*ids, *closing] or [self._encoder.start]), places
