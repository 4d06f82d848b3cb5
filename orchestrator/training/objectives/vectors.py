"""Trained label vectors in place of label words (Hambardzumyan et al. 2021, WARP): a label's score is its vector times
what the base's output matrix would multiply at [MASK]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from orchestrator.errors import BadRecipe
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

    def __init__(self, task: Classify, encoder: TextEncoder) -> None:
        self._words = VerbalizerClassification(task, encoder)
        self.metrics = task.metrics
        self.references, self.usable, self.shown = self._words.references, self._words.usable, self._words.shown

    def head(self, host: BaseHost) -> nn.Module | None:
        """Linear [H] -> [labels] without bias; a vector starts as the mean of its words' rows of the output matrix."""
        rows = host.model.get_output_embeddings()
        if not isinstance(getattr(rows, "weight", None), Tensor):
            raise BadRecipe("this base has no output matrix that label vectors could start from", where="method.type")
        with host.gathered(rows.weight) as table:
            starts = torch.stack([table[words].detach().float().cpu().mean(0) for words in self._words.tokens])
        vectors = nn.Linear(starts.shape[1], starts.shape[0], bias=False)
        with torch.no_grad():
            vectors.weight.copy_(starts)
        return vectors

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
