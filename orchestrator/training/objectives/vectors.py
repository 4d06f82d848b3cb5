"""Trained label vectors in place of label words (Hambardzumyan et al. 2021, WARP): a label's score is its vector times
what the base's output matrix would multiply at [MASK], and a bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from orchestrator.errors import BadRecipe
from orchestrator.recipe.methods import Warp
from orchestrator.recipe.tasks import Classify
from orchestrator.training.objectives.asking import Answer, softmax
from orchestrator.training.objectives.linear import head_scores
from orchestrator.training.objectives.objective import Example, Fields, Share
from orchestrator.training.objectives.verbalizer import VerbalizerClassification
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.rows import Row


class LabelVectors:
    """The rows, labels and references of a verbalizer; its words are where the vectors start."""

    reads_hidden = False

    def __init__(self, task: Classify, encoder: TextEncoder, method: Warp) -> None:
        self._words = VerbalizerClassification(task, encoder)
        self._from_words, self._bias = method.vectors == "words", method.bias
        self.metrics = task.metrics
        self.references, self.usable, self.shown = self._words.references, self._words.usable, self._words.shown

    def head(self, host: BaseHost) -> nn.Module | None:
        """Linear [H] -> [labels], random as torch starts one; or a vector is the mean of its words' rows of the output
        matrix, its bias that of theirs (YerevaNN/WARP, arp/models.py: `classifier_init`)."""
        rows = host.model.get_output_embeddings()
        if not isinstance(getattr(rows, "weight", None), Tensor):
            raise BadRecipe("this base has no output matrix that label vectors could start from", where="method.type")
        width = getattr(rows.weight, "ds_shape", rows.weight.shape)[1]
        vectors = nn.Linear(width, len(self._words.tokens), bias=self._bias)
        if self._from_words:
            _copy(vectors.weight, self._starts(host, rows.weight))
            if self._bias:
                known = getattr(rows, "bias", None)
                _copy(vectors.bias, torch.zeros(()) if known is None else self._starts(host, known))
        vectors.register_load_state_dict_pre_hook(_without_bias)
        return vectors

    def _starts(self, host: BaseHost, table: Tensor) -> Tensor:
        """[labels, …]: the mean over each label's words."""
        with host.gathered(table) as whole:
            return torch.stack([whole[words].detach().float().cpu().mean(0) for words in self._words.tokens])

    def example(self, fields: Fields) -> Example:
        return self._words.example(fields)

    def loss_sum(self, share: Share, examples: Sequence[Example], head: nn.Module | None) -> Tensor:
        return cross_entropy(self.measured(share, head), share.labels, reduction="sum")

    def questions(self, rows: Sequence[Fields], *, tuned: bool) -> list[Row]:
        return self._words.questions(rows, tuned=tuned)

    def measured(self, share: Share, head: nn.Module | None) -> Tensor:
        assert share.scored is not None
        return head_scores(head, share.scored)

    def chosen(self, measured: Tensor, rows: Sequence[Fields]) -> list[Answer]:
        return softmax(self._words.names, measured)


@torch.no_grad()
def _copy(parameter: Tensor, start: Tensor) -> None:
    parameter.copy_(start)


def _without_bias(vectors: nn.Module, tensors: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """What was trained before label vectors had a bias had none: 0."""
    if isinstance(vectors, nn.Linear) and vectors.bias is not None:
        tensors.setdefault(f"{prefix}bias", torch.zeros_like(vectors.bias))
