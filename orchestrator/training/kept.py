"""Answers of an evaluation that are found already: whoever leaves in the middle of one goes on behind them.

One file in the job's folder for each split, as it is and with the untuned base. A file of another recipe, base, step
or set of rows is no file of this evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.paths import read_json, write_json

#: What was said, and what of it is scored.
Said = tuple[str, str]


@dataclass(frozen=True)
class KeptAnswers:
    path: Path
    of: str  #: what is evaluated: job, step, split, rows
    final: bool  #: also what is whole is kept: the job is not over with it

    def read(self) -> dict[int, Said]:
        """By the number of the question; none where there are none of this evaluation."""
        try:
            kept = read_json(self.path)
            if kept["of"] != self.of:
                return {}
            return {int(number): (str(text), str(scored)) for number, (text, scored) in kept["answers"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def write(self, answers: Mapping[int, Said]) -> None:
        write_json(self.path, {"of": self.of, "answers": {str(number): list(said) for number, said in answers.items()}})
