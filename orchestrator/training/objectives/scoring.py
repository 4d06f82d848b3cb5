"""Classify by the likelihood of the label words behind the input (causal) or in the decoder (encoder-decoder).

Trained on the first word of the right label; the predicted label is the one whose best word has the highest mean
log-probability a token, so that long label words are not at a disadvantage.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from orchestrator.recipe.tasks import Classify
from orchestrator.training.objectives.classes import Classes
from orchestrator.training.objectives.objective import Example, Fields, Share
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning.forward import forward
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.prompt import Prompt
from orchestrator.tuning.rows import Row, RowBatch

IGNORED = -100


class LabelScoring:
    reads_hidden = False

    def __init__(self, task: Classify, encoder: TextEncoder) -> None:
        self._task = task
        self._encoder = encoder
        self._classes = Classes(task, encoder)
        self._separator = encoder.tokens(task.separator or "") if encoder.kind == "causal" else []
        closing = [encoder.eos] if encoder.kind == "seq2seq" else []
        self._words = [[encoder.tokens(word) + closing for word in words] for words in task.labels.values()]
        self._longest = max(len(word) for words in self._words for word in words)
        self.metrics = task.metrics
        self.references = self._classes.references

    def head(self, host: BaseHost) -> nn.Module | None:
        return None

    def example(self, fields: Fields) -> Example:
        word = self._words[self._classes.number_of(fields)][0]
        return Example(self._row(self._input(fields, tuned=True), word), units=len(word))

    def loss_sum(self, share: Share, examples: Sequence[Example], head: nn.Module | None) -> Tensor:
        return cross_entropy(share.logits.float(), share.labels, reduction="sum")

    def predict(
        self, host: BaseHost, prompt: Prompt, head: nn.Module | None, rows: Sequence[Fields], *, tuned: bool
    ) -> list[str]:
        candidates = [(number, word) for number, words in enumerate(self._words) for word in words]
        scored = [
            self._row(ids, word) for ids in (self._input(fields, tuned=tuned) for fields in rows) for _, word in candidates
        ]
        batch = RowBatch.collate(scored, pad_id=host.pad_id).to(host.device)
        output = forward(host, batch, [prompt if tuned else Prompt.empty()])
        losses = cross_entropy(output.logits.float(), output.labels, reduction="none")
        count = torch.bincount(output.row_of, minlength=len(scored))
        mean = torch.zeros(len(scored), device=losses.device).index_add(0, output.row_of, losses) / count
        best = mean.view(len(rows), len(candidates)).argmin(1).tolist()
        return [self._classes.names[candidates[number][0]] for number in best]

    def _row(self, ids: list[int], word: list[int]) -> Row:
        if self._encoder.kind == "seq2seq":
            return Row(ids=ids, labels=word, prompt=0)
        return Row(ids=ids + word, labels=[IGNORED] * len(ids) + word, prompt=0)

    def _input(self, fields: Fields, *, tuned: bool) -> list[int]:
        after = self._longest + len(self._separator) if self._encoder.kind == "causal" else 0
        limit = self._task.max_input_tokens
        return self._encoder.input_ids(self._task.input, fields, limit=limit, after=after, tuned=tuned) + self._separator
