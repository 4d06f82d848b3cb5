"""Score artifacts on the rows of a split, each by itself and all together as an ensemble (Lester et al. 2021, §5.4).

    python -m orchestrator.training.score_artifacts SPEC.json

SPEC.json: {"artifacts": [folder, …], "base": folder, "dataset": folder, "split": name, "by": field or null, "weights":
[number, …], "threads": n, "device": "cpu" | "cuda", "gpus": [uuid, …]}; `weights` are of PET's patterns, none where the
artifacts have none. Standard output: lines {"done": n, "rows": n} as the rows are answered, and at last `Report.told`.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from orchestrator.errors import BadData
from orchestrator.paths import read_json
from orchestrator.recipe.judging import Judging
from orchestrator.recipe.schema import JobRecipe
from orchestrator.recipe.tasks import PlainText
from orchestrator.tasks.ensemble import likeliest, mean, vote, weighted
from orchestrator.training.objectives.asking import Answer
from orchestrator.training.objectives.objective import Fields
from orchestrator.training.parts import refuse_many_parts, values_of
from orchestrator.training.predict import Loaded, Predictor, exit_code_of
from orchestrator.training.rows import Rows

Answered = Mapping[int, Sequence[Answer]]  #: of a row's number: each artifact's answer
Scores = dict[str, float]


@dataclass(frozen=True)
class Report:
    rows: int  #: that were asked
    each: list[Scores]  #: of the artifacts, in their order
    ensembles: dict[str, Scores]
    no_ensemble: str | None = None  #: why there is none

    @property
    def told(self) -> dict[str, Any]:
        return {"rows": self.rows, "each": self.each, "ensembles": self.ensembles, "no_ensemble": self.no_ensemble}


@dataclass(frozen=True)
class _Member:
    """An artifact, what it can be asked of the rows, and what the answers are compared with."""

    judging: Judging
    recipe: JobRecipe
    numbers: list[int]
    references: list[list[str]]

    @classmethod
    def of(cls, loaded: Loaded, rows: Sequence[Fields], by: str | None) -> _Member:
        recipe = loaded.recipe
        if by is not None:
            recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"scores_by": f"{{{by}}}"})})
        judging = Judging(recipe)
        refuse_many_parts(judging, rows)
        return cls(judging, recipe, *loaded.objective.references(rows))

    def scored(self, rows: Sequence[Fields], said: Sequence[str]) -> Scores:
        return values_of(self.judging, [rows[number] for number in self.numbers], said, self.references)


def score_artifacts(
    predictor: Predictor,
    rows: Sequence[Fields],
    *,
    by: str | None = None,
    weights: Sequence[float] = (),
    told: Callable[[int, int], None] = lambda done, rows: None,
) -> Report:
    """All artifacts' answers to each row from one forward. `by`: a field that scores are told apart by."""
    members = [_Member.of(loaded, rows, by) for loaded in predictor.loaded]
    asked = sorted({number for one in members for number in one.numbers}, key=lambda n: sum(map(len, rows[n].values())))
    found: dict[int, Sequence[Answer]] = {}
    for number, answers in zip(asked, predictor.answers(rows[number] for number in asked), strict=True):
        found[number] = answers
        told(len(found), len(asked))
    each = [
        member.scored(rows, [found[number][place].scored for number in member.numbers])
        for place, member in enumerate(members)
    ]
    why = _why_no_ensemble(members)
    together = {} if why else _together(members[0], found, weights)
    return Report(len(asked), each, {how: members[0].scored(rows, said) for how, said in together.items()}, why)


def _why_no_ensemble(members: Sequence[_Member]) -> str | None:
    first = members[0]
    if len(members) == 1:
        return "there is one artifact"
    if any(isinstance(one.recipe.task, PlainText) for one in members):
        return "running text has no answers that could be merged"
    if any((one.numbers, one.references) != (first.numbers, first.references) for one in members):
        return "the artifacts do not all answer the same rows with the same answers being right"
    return None


def _together(member: _Member, found: Answered, weights: Sequence[float]) -> dict[str, list[str]]:
    """How answers are merged -> what is compared, for each of the member's rows. Means only where all choose."""
    lots = [found[number] for number in member.numbers]
    made = {"vote": [vote([one.scored for one in lot]) for lot in lots]}
    chosen = [[one.probabilities for one in lot if one.probabilities is not None] for lot in lots]
    alike = all(
        len(some) == len(lot) and len({frozenset(one) for one in some}) == 1
        for some, lot in zip(chosen, lots, strict=True)
    )
    if alike:
        made["mean"] = [likeliest(mean(some)) for some in chosen]
    if alike and weights:
        made["weighted"] = [likeliest(weighted(some, weights)) for some in chosen]
    return made


def main(arguments: Sequence[str]) -> int:
    spec = read_json(Path(arguments[0]))
    torch.set_num_threads(int(spec["threads"]))
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    return exit_code_of(partial(_score, spec))


def _score(spec: dict[str, Any]) -> None:
    rows = list(Rows.open(Path(spec["dataset"]), spec["split"]))
    predictor = Predictor.of_spec(spec)
    try:
        report = score_artifacts(predictor, rows, by=spec["by"], weights=spec["weights"], told=_tell)
    except BadData as error:
        raise BadData(error.message, where=error.where or f"the {spec['split']} rows", hint=error.hint) from error
    _write(report.told)


def _tell(done: int, rows: int) -> None:
    _write({"done": done, "rows": rows})


def _write(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command that started this, which then ends it
    sys.exit(main(sys.argv[1:]))
