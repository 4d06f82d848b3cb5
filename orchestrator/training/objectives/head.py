"""A linear classifier on the base's last hidden states, trained together with the prompt.

Of an encoder it reads the first token, or the mean, or what the base's own pooler makes of the first; of a causal base
the state of the row's last token, and of an encoder-decoder base the decoder's last (`TextEncoder.reading`): what
transformers' GPT2-, Llama-, Bart- and T5ForSequenceClassification read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from orchestrator.recipe.tasks import Classify
from orchestrator.training.objectives.asking import Answer, softmax
from orchestrator.training.objectives.classes import Classes
from orchestrator.training.objectives.linear import PooledLinear, dropped, head_scores, new_linear
from orchestrator.training.objectives.objective import Example, Fields, Share, all_rows, nothing_shown, widened
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.rows import Row
from orchestrator.tuning.transfer import numbers


class HeadClassification:
    reads_hidden = True

    def __init__(self, task: Classify, encoder: TextEncoder) -> None:
        assert task.head is not None
        self._task = task
        self._pooling = task.head.pooling or ("cls" if encoder.kind == "masked" else "last")
        self._dropout = task.head.dropout
        self._temperature = task.temperature
        self._encoder = encoder
        self._classes = Classes(task, encoder)
        self.metrics = task.metrics
        self.references = self._classes.references
        self.usable, self.shown = all_rows, nothing_shown

    def head(self, host: BaseHost) -> nn.Module | None:
        """Linear [H] -> [labels]."""
        labels = len(self._classes.names)
        return PooledLinear(host, labels) if self._pooling == "pooler" else new_linear(host, labels)

    def example(self, fields: Fields) -> Example:
        row = self._encoder.reading(self._input(fields, tuned=True))
        if self._task.soft is not None:
            return Example(row, units=1, soft=self._classes.shares(fields, self._task.soft, self._task.temperature))
        return Example(row, units=1, target=self._classes.number_of(fields))

    def loss_sum(self, share: Share, examples: Sequence[Example], head: nn.Module | None) -> Tensor:
        assert share.hidden is not None
        soft = self._task.soft is not None
        wanted = [example.soft if soft else example.target for example in examples]
        targets = numbers(wanted, share.hidden.device)
        scores = self._scores(share, head, self._dropout)
        if not soft:
            return cross_entropy(scores, targets, reduction="sum")
        # timoschick/pet, pet/utils.py: both sides at the temperature T, and T^2 against the gradients' being smaller.
        return kl_div((scores / self._temperature).log_softmax(-1), targets, reduction="sum") * self._temperature**2

    def questions(self, rows: Sequence[Fields], *, tuned: bool) -> list[Row]:
        return [self._encoder.reading(self._input(fields, tuned=tuned)) for fields in rows]

    def measured(self, share: Share, head: nn.Module | None) -> Tensor:
        return self._scores(share, head, 0)

    def chosen(self, measured: Tensor, rows: Sequence[Fields]) -> list[Answer]:
        return softmax(self._classes.names, measured)

    def _scores(self, share: Share, head: nn.Module | None, dropout: float) -> Tensor:
        pooled = pool(share, self._pooling)
        if isinstance(head, PooledLinear):
            pooled = head.pooled(pooled)
        return head_scores(head, dropped(pooled, share, dropout))

    def _input(self, fields: Fields, *, tuned: bool) -> list[int]:
        return self._encoder.input_ids(self._task.input, fields, limit=self._task.max_input_tokens, tuned=tuned)


def pool(share: Share, how: str) -> Tensor:
    """[rows, H]: the mean over the text's tokens, or the first of them, where virtual tokens never count; or the row's
    last state, whatever its token is."""
    assert share.hidden is not None
    hidden = widened(share.hidden)
    if how == "mean":
        weights = share.text_mask.to(hidden.dtype).unsqueeze(-1)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    if how == "last":
        assert share.ends is not None
        column = share.ends
    else:
        column = share.text_mask.to(torch.int32).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), column]
