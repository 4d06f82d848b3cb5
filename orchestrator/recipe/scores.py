"""On which rows jobs are scored, and which way a score points."""

from __future__ import annotations

TRAIN, VALIDATION, TEST = NAMES = ("train", "validation", "test")
SCORED = (VALIDATION, TEST)  #: on whose rows a job is scored, in this order
TELLING = (TEST, VALIDATION)  #: of the scores on several the first are those that are shown
_SMALLER_IS_BETTER = frozenset({"loss", "perplexity", "ter", "webnlg_ter"})


def smaller_is_better(metric: str) -> bool:
    """Of all other metrics the larger is. A task's own score in a mixture is named `perplexity:TASK`."""
    return metric.partition(":")[0] in _SMALLER_IS_BETTER
