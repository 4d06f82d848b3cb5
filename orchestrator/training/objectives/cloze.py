"""One missing word (LAMA, Petroni et al. 2019): trained over the base's whole vocabulary, and predicted among the words
of `task.vocabulary` (THUDM/P-tuning, LAMA/p_tuning/modeling.py).

Masked row: the input with its [MASK], which BART and T5 have too (`TextEncoder.filling`). Causal row: the input, and
the word right behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from orchestrator.errors import BadData, BadRecipe
from orchestrator.recipe.tasks import Cloze
from orchestrator.training.objectives.asking import Answer
from orchestrator.training.objectives.objective import Example, Fields, Share, loss_at_labels, no_head
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning.rows import NO_LABEL, Row


class ClozeWord:
    reads_hidden = False

    def __init__(self, task: Cloze, encoder: TextEncoder) -> None:
        self._task, self._encoder = task, encoder
        self._masked = encoder.has_mask(task.input)
        self._words = None if task.vocabulary is None else _vocabulary(Path(task.vocabulary), encoder)
        self._allowed = None if self._words is None else frozenset(self._words)
        self.metrics = task.metrics
        self.head = no_head
        self.loss_sum = loss_at_labels

    def example(self, fields: Fields) -> Example:
        token = self._token(fields)
        if token is None:
            word = self._encoder.plain(self._task.target, fields)
            raise BadData(f"{word!r} is not one token of this base, or not in the recipe's vocabulary")
        return Example(self._row(fields, token, tuned=True), units=1)

    def questions(self, rows: Sequence[Fields], *, tuned: bool) -> list[Row]:
        # The token only marks the position to read.
        return [self._row(fields, 0, tuned=tuned) for fields in rows]

    def measured(self, share: Share, head: nn.Module | None) -> Tensor:
        """[rows]: the best token's id."""
        return best_among(share.logits, self._words)

    def chosen(self, measured: Tensor, rows: Sequence[Fields]) -> list[Answer]:
        return [Answer(self.word(str(token)), compared=str(token)) for token in measured.tolist()]

    def word(self, reference: str) -> str:
        return self._encoder.text([int(reference)]).strip()

    def references(self, rows: Sequence[Fields]) -> tuple[list[int], list[list[str]]]:
        """The rows whose word can be predicted at all (LAMA leaves the others out), each word by its token: `the` and
        ` the` read alike, and LAMA compares tokens."""
        tokens = [self._token(fields) for fields in rows]
        kept = [number for number, token in enumerate(tokens) if token is not None]
        if not kept:
            raise self._nothing_left(rows)
        return kept, [[str(token)] for token in tokens if token is not None]

    def usable(self, rows: Sequence[Fields]) -> Sequence[Fields]:
        kept = [fields for fields in rows if self._token(fields) is not None]
        if not kept:
            raise self._nothing_left(rows)
        return kept

    def shown(self, rows: Sequence[Fields]) -> list[list[int]]:
        found = []
        for fields in rows:
            word = [token] if (token := self._token(fields)) is not None else []
            text = self._encoder.body(self._task.input, fields, limit=self._task.max_input_tokens, mask=word)
            found.append(text if self._masked else [*text, *word])
        return found

    def _token(self, fields: Fields) -> int | None:
        token = self._encoder.one_token(self._encoder.plain(self._task.target, fields).strip())
        return token if self._allowed is None or token in self._allowed else None

    def _nothing_left(self, rows: Sequence[Fields]) -> BadData:
        what = "is one token of this base and in the recipe's vocabulary"
        return BadData(f"of {len(rows)} rows none has a word that {what}", where="task.target")

    def _row(self, fields: Fields, token: int, *, tuned: bool) -> Row:
        limit, after = self._task.max_input_tokens, int(not self._masked)
        ids = self._encoder.input_ids(self._task.input, fields, limit=limit, after=after, tuned=tuned)
        if self._masked:
            return self._encoder.filling(ids, token)
        infix_at = self._encoder.infix_at(len(ids) - 1)
        return Row([*ids, token], [*[NO_LABEL] * len(ids), token], prompt=0, infix_at=infix_at)


def best_among(scores: Tensor, words: Sequence[int] | None) -> Tensor:
    """[rows, V] -> [rows]: the token with the highest score of `words`, or of all."""
    if words is None:
        return scores.argmax(-1)
    tokens = torch.tensor(words, device=scores.device)
    return tokens[scores[:, tokens].argmax(-1)]


def _vocabulary(path: Path, encoder: TextEncoder) -> list[int]:
    """Tokens of the words in a file, each once; words of several tokens are left out, as in LAMA."""
    try:
        words = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRecipe(f"cannot be read: {error}", where=f"task.vocabulary: {path}") from error
    found = dict.fromkeys(encoder.one_token(word.strip()) for word in words if word.strip())
    tokens = [token for token in found if token is not None]
    if not tokens:
        raise BadRecipe("holds no word that is one token of this base", where=f"task.vocabulary: {path}")
    return tokens
