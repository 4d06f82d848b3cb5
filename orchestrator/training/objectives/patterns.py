"""Several hand-written patterns for one task (Schick & Schütze 2021, PET): rows train under each, and a label's score
is the mean over all, of which each has its weight."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from orchestrator.tasks import ensemble
from orchestrator.training.objectives.asking import Answer
from orchestrator.training.objectives.objective import Example, Fields, Share, no_head
from orchestrator.training.objectives.scoring import LabelScoring
from orchestrator.training.objectives.under_each import pattern_of, under_each
from orchestrator.training.objectives.verbalizer import VerbalizerClassification
from orchestrator.tuning.rows import Row


class PatternEnsemble:
    reads_hidden = False

    def __init__(self, patterns: Sequence[VerbalizerClassification | LabelScoring], weights: Sequence[float]) -> None:
        """`weights`: of the patterns, in their order, together 1."""
        self._patterns, self._weights = patterns, weights
        self.metrics = patterns[0].metrics
        self.head = no_head
        self.references = patterns[0].references
        self.shown = patterns[0].shown

    def example(self, fields: Fields) -> Example:
        return self._patterns[pattern_of(fields)].example(fields)

    def loss_sum(self, share: Share, examples: Sequence[Example], head: nn.Module | None) -> Tensor:
        return self._patterns[0].loss_sum(share, examples, head)

    def questions(self, rows: Sequence[Fields], *, tuned: bool) -> list[Row]:
        """The untuned base is asked in the words of `task.input` alone, as often."""
        asked = self._patterns if tuned else [self._patterns[0]] * len(self._patterns)
        return [row for fields in rows for one in asked for row in one.questions([fields], tuned=tuned)]

    def measured(self, share: Share, head: nn.Module | None) -> Tensor:
        return self._patterns[0].measured(share, head)

    def chosen(self, measured: Tensor, rows: Sequence[Fields]) -> list[Answer]:
        """The weighted mean of log-probabilities: that of the patterns' scores, up to what all labels share."""
        count = len(self._patterns)
        each = self._patterns[0].chosen(measured, [fields for fields in rows for _ in range(count)])
        found = []
        for start in range(0, len(each), count):
            under = [one.probabilities or {} for one in each[start : start + count]]
            merged = ensemble.weighted(under, self._weights)
            found.append(Answer(ensemble.likeliest(merged), merged))
        return found

    def usable(self, rows: Sequence[Fields]) -> Sequence[Fields]:
        return under_each(self._patterns[0].usable(rows), len(self._patterns))
