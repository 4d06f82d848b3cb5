"""Rows once for each of several patterns (PET)."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.training.objectives.objective import Fields
from orchestrator.training.objectives.repeated import Repeated

_PATTERN = "\0pattern"


def under_each(rows: Sequence[Fields], patterns: int) -> Sequence[Fields]:
    """Each row once for each pattern, whose number is in it."""
    return Repeated(rows, len(rows) * patterns, lambda number: divmod(number, patterns), _PATTERN)


def pattern_of(fields: Fields) -> int:
    """The number of the row's pattern."""
    return int(fields.get(_PATTERN, "0"))
