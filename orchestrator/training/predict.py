"""Use an artifact: rows of fields in, texts out.

    python -m orchestrator.training.predict SPEC.json < rows.jsonl > predictions.jsonl

SPEC.json: {"artifact": folder, "base": folder, "threads": n}. Standard input: one JSON object of fields a line.
Standard output: the same objects in the same order with `prediction` added, written batch by batch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
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
from orchestrator.tuning.host import BaseHost, Kind
from orchestrator.tuning.methods.method import Slots
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
        facts, recipe = _read_facts(artifact)
        if fingerprint(base) != facts["base"]["fingerprint"]:
            raise BadInput("these are not the weights that the artifact was trained on", where=str(base))
        remote = recipe.base.trust_remote_code and load_settings().allow_remote_code
        host = BaseHost.load(base, kind=facts["base"]["kind"], dtype=recipe.base.dtype, trust_remote_code=remote)
        prompt, tensors = load_prompt(artifact)
        context = read_base_facts(base).max_positions
        encoder = TextEncoder(host, slots=facts["slots"], length=prompt.length, context=context)
        objective = build_objective(recipe, encoder)
        head = objective.head(host)
        if head is not None:
            _fill(head, tensors, artifact)
        return cls(host, objective, prompt, head, recipe.train.eval_batch_size)

    @torch.no_grad()
    def predict(self, rows: Iterable[dict[str, str]]) -> Iterator[dict[str, Any]]:
        rows = iter(rows)
        while batch := list(islice(rows, self.batch_size)):
            texts = self.objective.predict(self.host, self.prompt, self.head, batch, tuned=True)
            for row, text in zip(batch, texts, strict=True):
                yield {**row, "prediction": text}


def _read_facts(artifact: Path) -> tuple[dict[str, Any], JobRecipe]:
    path = artifact / "artifact.json"
    try:
        facts = read_json(path)
        recipe = JobRecipe.model_validate(facts["recipe"])
        known = facts["slots"] in get_args(Slots) and facts["base"]["kind"] in get_args(Kind)
        if not known or not isinstance(facts["base"]["fingerprint"], str):
            raise ValueError("its slots or its base are none that there are")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"this does not describe an artifact: {error}", where=str(path)) from error
    return facts, recipe


def _fill(head: nn.Module, tensors: Mapping[str, Tensor], artifact: Path) -> None:
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        raise BadInput(f"the classification head does not fit its recipe: {error}", where=str(artifact)) from error


def main(arguments: Sequence[str]) -> int:
    spec = read_json(Path(arguments[0]))
    torch.set_num_threads(int(spec["threads"]))
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8")
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
            if not isinstance(row, dict):
                raise ValueError
            values = {key: _text(value) for key, value in row.items()}
            "".join(values.values()).encode()  # JSON can write half a character: "\ud83d"
        except ValueError as error:
            raise BadData("not a JSON object of fields", where=f"input line {number}") from error
        yield values


def _text(value: Any) -> str:
    """As datasets hold it: anything but text is JSON with sorted keys and no spaces."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
