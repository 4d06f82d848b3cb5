"""Label words of several tokens, at as many masks (Schick & Schütze 2021, "It's Not Just Size That Matters", §3.1).

A word of k tokens is asked for with k masks in place of one. The base fills in one token at a time, first the one that
it is surest of, and the word's score is the sum of their log-probabilities. Training takes one forward: as many masks
as the longest word has, each token at its own mask, and a margin of 1 between the right label and every other one
(what is scored so are no probabilities, so there is no cross entropy of them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from orchestrator.errors import BadRecipe
from orchestrator.recipe.tasks import Classify
from orchestrator.training.objectives.asking import Answer, softmax
from orchestrator.training.objectives.classes import Classes, refuse_alike
from orchestrator.training.objectives.objective import Example, Fields, Share, widened
from orchestrator.training.objectives.under_each import UnderEach, pattern_of
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning.forward import forward
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.prompt import Prompt
from orchestrator.tuning.rows import Row, RowBatch

IGNORED = -100
MARGIN = 1.0


class MaskedWords:
    reads_hidden = False

    def __init__(self, task: Classify, encoder: TextEncoder, templates: Sequence[str]) -> None:
        """`templates`: one, or PET's patterns, over which a label's score is the mean."""
        self._task, self._encoder, self._templates = task, encoder, templates
        self._classes = Classes(task, encoder)
        self._words = [[word_tokens(encoder, word) for word in words] for words in task.labels.values()]
        refuse_alike(task.labels, self._words)
        self._longest = max(len(word) for words in self._words for word in words)
        self.metrics = task.metrics
        self.references = self._classes.references

    def head(self, host: BaseHost) -> nn.Module | None:
        return None

    def usable(self, rows: Sequence[Fields]) -> Sequence[Fields]:
        return rows if len(self._templates) == 1 else UnderEach(rows, len(self._templates))

    def example(self, fields: Fields) -> Example:
        number = self._classes.number_of(fields)
        ids = self._ids(self._templates[pattern_of(fields)], fields, self._longest, tuned=True)
        return Example(Row(ids, [number if i == self._encoder.mask else IGNORED for i in ids], prompt=0), units=1)

    def loss_sum(self, share: Share, examples: Sequence[Example], head: nn.Module | None) -> Tensor:
        chances = widened(share.logits).log_softmax(-1).view(len(examples), self._longest, -1)
        scores = torch.stack([_together(chances, words) for words in self._words], dim=1)
        right = share.labels.view(len(examples), self._longest)[:, :1]
        lacking = (MARGIN - scores.gather(1, right) + scores).clamp_min(0)
        return lacking.scatter(1, right, 0.0).sum()

    def answers(
        self,
        host: BaseHost,
        prompt: Prompt,
        head: nn.Module | None,
        rows: Sequence[Fields],
        *,
        tuned: bool,
        most: int,
    ) -> list[Answer]:
        """At most `most` rows in a forward. The untuned base is asked in the words of `task.input` alone."""
        templates = self._templates if tuned else self._templates[:1]
        words = [word for theirs in self._words for word in theirs]
        asked = [
            _Asked(self._ids(template, fields, len(word), tuned=tuned), list(word))
            for fields in rows
            for template in templates
            for word in words
        ]
        self._fill(host, prompt if tuned else Prompt.empty(), asked, most)
        scores = torch.tensor([one.score for one in asked]).view(-1, len(templates), len(words)).mean(1)
        each = scores.split([len(theirs) for theirs in self._words], dim=1)
        return softmax(self._classes.names, torch.stack([theirs.mean(1) for theirs in each], dim=1))

    def shown(self, rows: Sequence[Fields]) -> list[list[int]]:
        limit = self._task.max_input_tokens
        words = [self._words[self._classes.number_of(fields)][0] for fields in rows]
        return [
            self._encoder.body(self._templates[0], fields, limit=limit, mask=word)
            for fields, word in zip(rows, words, strict=True)
        ]

    @torch.no_grad()
    def _fill(self, host: BaseHost, prompt: Prompt, asked: Sequence[_Asked], most: int) -> None:
        while open_ := [one for one in asked if one.left]:
            for start in range(0, len(open_), most):
                lot = open_[start : start + most]
                batch = RowBatch.collate([one.row(self._encoder.mask) for one in lot], pad_id=host.pad_id)
                output = forward(host, batch.to(host.device), [prompt])
                chances = widened(output.logits).log_softmax(-1)
                for number, one in enumerate(lot):
                    one.take(chances[output.starts[number] : output.starts[number + 1]], self._encoder.mask)

    def _ids(self, template: str, fields: Fields, masks: int, *, tuned: bool) -> list[int]:
        """The text with `masks` masks, cut as for the longest word: all words are asked for behind the same text."""
        limit, mask = self._task.max_input_tokens, self._encoder.mask
        ids = self._encoder.input_ids(template, fields, limit=limit, after=self._longest - 1, tuned=tuned)
        return [token for i in ids for token in ([mask] * masks if i == mask else [i])]


@dataclass
class _Asked:
    """A word being filled in."""

    ids: list[int]
    left: list[int]  #: its tokens whose masks are not filled yet, in their order
    score: float = 0.0

    def row(self, mask: int) -> Row:
        return Row(self.ids, [0 if i == mask else IGNORED for i in self.ids], prompt=0)

    def take(self, chances: Tensor, mask: int) -> None:
        """`chances` [masks, V]: fill in the token that is the likeliest at its mask."""
        own = chances[torch.arange(len(self.left)), torch.tensor(self.left, device=chances.device)]
        best = int(own.argmax())
        places = [place for place, token in enumerate(self.ids) if token == mask]
        self.ids[places[best]] = self.left.pop(best)
        self.score += float(own[best])


def word_tokens(encoder: TextEncoder, word: str) -> list[int]:
    """As the word stands in running text: one token where it can be one. BadRecipe for what the base cannot read."""
    one = encoder.one_token(word)
    tokens = [one] if one is not None else encoder.tokens(" " + word)
    if not tokens or encoder.unknown in tokens:
        raise BadRecipe(
            f"the label word {word!r} is not in the vocabulary of this base",
            where="task.labels",
            hint="choose a word that the base's tokenizer can write",
        )
    return tokens


def _together(chances: Tensor, words: Sequence[Sequence[int]]) -> Tensor:
    """[rows, masks, V] -> [rows]: the mean over a label's words of their tokens' log-probabilities, all at once."""
    each = [chances[:, range(len(word)), list(word)].sum(-1) for word in words]
    return torch.stack(each).mean(0)
