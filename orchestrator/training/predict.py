"""Use an artifact: rows of fields in, texts out.

    python -m orchestrator.training.predict SPEC.json < rows.jsonl > predictions.jsonl

SPEC.json: {"artifact": folder, "base": folder, "threads": n}. Standard input: one JSON object of fields a line.
Standard output: the same objects in the same order with `prediction` added, written batch by batch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from orchestrator.errors import BadData, BadInput, PtqError
from orchestrator.manifest import manifest_faults
from orchestrator.paths import read_json
from orchestrator.recipe.bases import read_base_facts
from orchestrator.recipe.schema import JobRecipe
from orchestrator.settings import load_settings
from orchestrator.training.objectives import Objective, build_objective
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning.artifact import load_prompt
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.prompt import Prompt
from orchestrator.weights import fingerprint


@dataclass(frozen=True)
class Predictor:
    """A loaded artifact on its base."""

    host: BaseHost
    objective: Objective
    prompt: Prompt
    head: nn.Module | None
    batch_size: int

    @classmethod
    def load(cls, artifact: Path, base: Path) -> Predictor:
        """Raises BadInput when the artifact is damaged or the base's weights are not those it was trained on."""
        faults = manifest_faults(artifact)
        if faults:
            raise BadInput(f"the artifact is damaged: {'; '.join(faults)}", where=str(artifact))
        facts = read_json(artifact / "artifact.json")
        recipe = JobRecipe.model_validate(facts["recipe"])
        if fingerprint(base) != facts["base"]["fingerprint"]:
            raise BadInput("these are not the weights that the artifact was trained on", where=str(base))
        remote = recipe.base.trust_remote_code and load_settings().allow_remote_code
        host = BaseHost.load(base, kind=facts["base"]["kind"], dtype=recipe.base.dtype, trust_remote_code=remote)
        prompt, tensors = load_prompt(artifact)
        encoder = TextEncoder(host, slots=facts["slots"], length=facts["length"], context=read_base_facts(base).max_positions)
        objective = build_objective(recipe, encoder)
        head = objective.head(host)
        if head is not None:
            head.load_state_dict(tensors)
        return cls(host, objective, prompt, head, recipe.train.eval_batch_size)

    @torch.no_grad()
    def predict(self, rows: Iterable[dict[str, str]]) -> Iterator[dict[str, Any]]:
        rows = iter(rows)
        while batch := list(islice(rows, self.batch_size)):
            texts = self.objective.predict(self.host, self.prompt, self.head, batch, tuned=True)
            for row, text in zip(batch, texts, strict=True):
                yield {**row, "prediction": text}


def main(arguments: Sequence[str]) -> int:
    spec = read_json(Path(arguments[0]))
    torch.set_num_threads(int(spec["threads"]))
    transformers_logging.disable_progress_bar()
    try:
        predictor = Predictor.load(Path(spec["artifact"]), Path(spec["base"]))
        for result in predictor.predict(_rows(sys.stdin)):
            sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
            sys.stdout.flush()
    except PtqError as error:
        sys.stderr.write(f"ptq: {error}\n")
        return error.exit_code
    return 0


def _rows(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadData("not a JSON object", where=f"input line {number}") from error
        if not isinstance(row, dict):
            raise BadData("not a JSON object", where=f"input line {number}")
        yield {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in row.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
