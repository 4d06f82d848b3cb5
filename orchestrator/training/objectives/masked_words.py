"""Label words of several tokens, at as many masks (Schick & Schütze 2021, "It's Not Just Size That Matters", §3.1).

A word of k tokens is asked for with k masks in place of one. The base fills in one token at a time, first the one that
it is surest of, and the word's score is the sum of their log-probabilities. Training takes one forward: as many masks
as the longest word has, each token at its own mask, and a margin of 1 between the right label and every other one
(what is scored so are no probabilities, so there is no cross entropy of them). The words may be the row's own, and as
many as it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from orchestrator.errors import BadRecipe
from orchestrator.recipe.tasks import Classify
from orchestrator.training.objectives.asking import Answer, softmax
from orchestrator.training.objectives.classes import Classes, refuse_alike, refuse_silent
from orchestrator.training.objectives.objective import Example, Fields, Share, Words, widened
from orchestrator.training.objectives.under_each import pattern_of, under_each
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.rows import NO_LABEL, Row
from orchestrator.tuning.transfer import numbers

MARGIN = 1.0


class MaskedWords:
    reads_hidden = False

    def __init__(
        self, task: Classify, encoder: TextEncoder, templates: Sequence[str], weights: Sequence[float]
    ) -> None:
        """`templates`: one, or PET's patterns, over which a label's score is the mean with `weights`, together 1."""
        self._task, self._encoder, self._templates, self._weights = task, encoder, templates, weights
        self._classes = Classes(task, encoder)
        self._fixed: Words | None = None
        if not self._classes.own:
            self._fixed = [[word_tokens(encoder, word) for word in words] for words in task.labels.values()]
            refuse_alike(task.labels, self._fixed)
        self.metrics = task.metrics
        self.references = self._classes.references

    def head(self, host: BaseHost) -> nn.Module | None:
        return None

    def usable(self, rows: Sequence[Fields]) -> Sequence[Fields]:
        rows = self._classes.usable(rows)
        return rows if len(self._templates) == 1 else under_each(rows, len(self._templates))

    def example(self, fields: Fields) -> Example:
        """Of several right candidates one is trained on, and the others are left out."""
        offered = self._classes.offered(fields)
        right, *others = self._classes.right(fields, offered)
        each = zip(offered, self._words(offered), strict=True)
        kept = {name: words for name, words in each if name not in others}
        number, words = list(kept).index(right), list(kept.values())
        ids = self._masks(self._read(self._templates[pattern_of(fields)], fields, words, tuned=True), _longest(words))
        labels = [number if i == self._encoder.mask else NO_LABEL for i in ids]
        return Example(Row(ids, labels, prompt=0), units=1, target=number, words=words)

    def loss_sum(self, share: Share, examples: Sequence[Example], head: nn.Module | None) -> Tensor:
        chances = widened(share.logits).log_softmax(-1)
        scores = _together(chances, [example.words for example in examples])
        others, rights, at = [], [], 0
        for example in examples:
            words, right = example.words, example.target
            for number, theirs in enumerate(words):
                if number != right and theirs != words[right]:  # nothing can be learnt of what the base reads alike
                    others.append(at + number)
                    rights.append(at + right)
            at += len(words)
        places = numbers([others, rights], scores.device, torch.long)
        return (MARGIN - scores[places[1]] + scores[places[0]]).clamp_min(0).sum()

    def talk(self, rows: Sequence[Fields], head: nn.Module | None, *, tuned: bool) -> Filling:
        """The untuned base is asked in the words of `task.input` alone."""
        templates, weights = (self._templates, self._weights) if tuned else (self._templates[:1], [1.0])
        asked, offered = [], [self._classes.offered(fields) for fields in rows]
        for fields, its in zip(rows, offered, strict=True):
            words = self._words(its)
            asked.append([self._asked(template, fields, words, tuned=tuned) for template in templates])
        return Filling(self._encoder.mask, [list(its) for its in offered], asked, weights)

    def shown(self, rows: Sequence[Fields]) -> list[list[int]]:
        limit, found = self._task.max_input_tokens, []
        for fields in rows:
            offered = self._classes.offered(fields)
            number = list(offered).index(self._classes.right(fields, offered)[0])
            word = self._words(offered)[number][0]
            found.append(self._encoder.body(self._templates[0], fields, limit=limit, mask=word))
        return found

    def _words(self, offered: Mapping[str, Sequence[str]]) -> Words:
        """The tokens of each name's words."""
        if self._fixed is not None:
            return self._fixed
        found = [[own_tokens(self._encoder, word) for word in words] for words in offered.values()]
        refuse_silent(offered, found)
        return found

    def _asked(self, template: str, fields: Fields, words: Words, *, tuned: bool) -> list[list[_Asked]]:
        ids = self._read(template, fields, words, tuned=tuned)
        return [[_Asked(self._masks(ids, len(word)), list(word)) for word in theirs] for theirs in words]

    def _read(self, template: str, fields: Fields, words: Words, *, tuned: bool) -> list[int]:
        """The text with its mask, cut as for the longest word: all words are asked for behind the same text."""
        limit, after = self._task.max_input_tokens, _longest(words) - 1
        return self._encoder.input_ids(template, fields, limit=limit, after=after, tuned=tuned)

    def _masks(self, ids: Sequence[int], count: int) -> list[int]:
        mask = self._encoder.mask
        return [token for i in ids for token in ([mask] * count if i == mask else [i])]


@dataclass
class _Asked:
    """A word being filled in."""

    ids: list[int]
    left: list[int]  #: its tokens whose masks are not filled yet, in their order
    score: float = 0.0

    def row(self, mask: int) -> Row:
        return Row(self.ids, [0 if i == mask else NO_LABEL for i in self.ids], prompt=0)

    def take(self, chances: Tensor, mask: int) -> None:
        """`chances` [masks, V]: fill in the token that is the likeliest at its mask."""
        own = chances[torch.arange(len(self.left), device=chances.device), numbers(self.left, chances.device)]
        best = int(own.argmax())
        places = [place for place, token in enumerate(self.ids) if token == mask]
        self.ids[places[best]] = self.left.pop(best)
        self.score += float(own[best])


class Filling:
    """Rows whose words are being filled in."""

    def __init__(
        self, mask: int, names: list[list[str]], asked: list[list[list[list[_Asked]]]], weights: Sequence[float]
    ) -> None:
        """`asked`: of each row, template (which has one of `weights`), name and word."""
        self._mask, self._names, self._asked = mask, names, asked
        self._shares = torch.tensor(weights, dtype=torch.float64)[:, None]
        self._every = [one for row in asked for template in row for words in template for one in words]
        self._lots: list[list[_Asked]] = []

    def rows(self) -> list[Row]:
        """Words that ask the same of the base, as all of equally many tokens do at first, share a row."""
        alike: dict[tuple[int, ...], list[_Asked]] = {}
        for one in self._every:
            if one.left:
                alike.setdefault(tuple(one.ids), []).append(one)
        self._lots = list(alike.values())
        return [those[0].row(self._mask) for those in self._lots]

    def hear(self, share: Share, first: int) -> None:
        chances = widened(share.logits).log_softmax(-1)
        for number in range(len(share.starts) - 1):
            for one in self._lots[first + number]:
                one.take(chances[share.starts[number] : share.starts[number + 1]], self._mask)

    def answers(self) -> list[Answer]:
        found = []
        for names, row in zip(self._names, self._asked, strict=True):
            each = [[torch.tensor([one.score for one in words]).mean() for words in template] for template in row]
            scores = (torch.stack([torch.stack(means) for means in each]) * self._shares).sum(0)
            found += softmax(names, scores[None])
        return found


def own_tokens(encoder: TextEncoder, word: str) -> list[int]:
    """As the word stands in running text: one token where it can be one."""
    one = encoder.one_token(word)
    return [one] if one is not None else encoder.tokens(" " + word.lstrip())


def word_tokens(encoder: TextEncoder, word: str) -> list[int]:
    """The same of a recipe's word. BadRecipe for what the base cannot read."""
    tokens = own_tokens(encoder, word)
    if not tokens or encoder.unknown in tokens:
        raise BadRecipe(
            f"the label word {word!r} is not in the vocabulary of this base",
            where="task.labels",
            hint="choose a word that the base's tokenizer can write",
        )
    return tokens


def _longest(words: Words) -> int:
    return max(len(word) for theirs in words for word in theirs)


def _together(chances: Tensor, asked: Sequence[Words]) -> Tensor:
    """[masks of all rows, V] -> [names of all rows]: the mean over a name's words of their tokens' log-probabilities,
    all at once. A row has as many masks as its longest word has tokens."""
    names, first = [], 0
    for words in asked:
        names += [[[(first + i, token) for i, token in enumerate(word)] for word in theirs] for theirs in words]
        first += _longest(words)
    most = max(len(words) for words in names)
    size = max(len(word) for words in names for word in words)
    none = (-1, 0)
    padded = [
        [[*word, *[none] * (size - len(word))] for word in [*words, *[[]] * (most - len(words))]] for words in names
    ]
    places = numbers(padded, chances.device, torch.long)  # [names, words, tokens, 2]
    there = places[..., 0] >= 0
    picked = chances[places[..., 0].clamp_min(0), places[..., 1]].where(there, chances.new_zeros(()))
    counts = numbers([len(words) for words in names], chances.device)
    return picked.sum((1, 2)) / counts
