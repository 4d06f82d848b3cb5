"""Use artifacts: rows of fields in, answers out, all artifacts' in one forward.

    python -m orchestrator.training.predict SPEC.json < rows.jsonl > answers.jsonl

SPEC.json: {"artifacts": [folder, …], "base": folder, "threads": n, "device": "cpu" | "cuda", "gpus": [uuid, …]}; the
last two may be left out: on the CPU, and on whatever card CUDA shows. Standard input: one JSON object of fields a line.
Standard output, in the same order and batch by batch: a line for each row with a list that holds each artifact's
answer, {"text": …, "probabilities": {label: p} or null}.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import TextIOWrapper
from itertools import islice, tee
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from orchestrator.companions import refuse_changes
from orchestrator.errors import BadData, BadInput, PtqError
from orchestrator.manifest import manifest_faults
from orchestrator.paths import ArtifactPaths, read_json
from orchestrator.recipe.bases import read_base_facts
from orchestrator.recipe.schema import JobRecipe
from orchestrator.settings import load_settings
from orchestrator.training.cards import check_a_card
from orchestrator.training.demonstrations import show
from orchestrator.training.objectives import Objective, build_objective
from orchestrator.training.objectives.asking import Answer, Asked, answer
from orchestrator.training.objectives.objective import Fields
from orchestrator.training.own_files import with_files_of
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning.artifact import load_prompt
from orchestrator.tuning.host import BaseHost, Kind
from orchestrator.tuning.methods.method import Slots
from orchestrator.tuning.own_weights import Brought, in_place, load_brought
from orchestrator.tuning.prompt import Prompt
from orchestrator.values import field_text
from orchestrator.weights import fingerprint


@dataclass(frozen=True)
class Loaded:
    """An artifact on its base, ready to answer."""

    objective: Objective
    prompt: Prompt
    head: nn.Module | None
    batch_size: int
    brought: Brought  #: for the base, where the artifact's job has not left it as it is
    recipe: JobRecipe

    @classmethod
    def load(
        cls, artifact: Path, recipe: JobRecipe, facts: dict[str, Any], host: BaseHost, context: int | None
    ) -> Loaded:
        prompt, tensors = load_prompt(artifact)
        encoder = TextEncoder(host, slots=facts["slots"], length=prompt.length, context=context)
        weights = [pattern["weight"] for pattern in facts.get("patterns") or []]
        objective = build_objective(recipe, encoder, weights)
        show(encoder, recipe, objective, facts.get("demonstrations") or [])
        head = objective.head(host)
        if head is not None:
            _fill(head, tensors, artifact)
            head.to(host.device)
        return cls(objective, prompt, head, recipe.train.eval_batch_size, load_brought(artifact, host), recipe)


@dataclass(frozen=True)
class Predictor:
    """Loaded artifacts on the one base that they were trained on."""

    host: BaseHost
    loaded: Sequence[Loaded]

    @classmethod
    def load(cls, artifact: Path, base: Path, *others: Path, device: str = "cpu") -> Predictor:
        """Raises BadInput when an artifact is damaged or the base's weights are not those it was trained on."""
        found = fingerprint(base)
        read = [(folder, *_checked(folder, base, found)) for folder in (artifact, *others)]
        _, facts, recipe = read[0]
        for folder, theirs, its in read:
            if (theirs["base"]["kind"], its.base.dtype) != (facts["base"]["kind"], recipe.base.dtype):
                what = f"it was trained on the base as {its.base.dtype}, the first artifact as {recipe.base.dtype}"
                raise BadInput(what, where=str(folder), hint="predict with it in a command of its own")
        remote = recipe.base.trust_remote_code and load_settings().allow_remote_code
        kind, dtype = facts["base"]["kind"], recipe.base.dtype
        host = BaseHost.load(base, kind=kind, dtype=dtype, device=device, trust_remote_code=remote)
        context = read_base_facts(base).max_positions
        return cls(host, [Loaded.load(folder, its, theirs, host, context) for folder, theirs, its in read])

    @classmethod
    def of_spec(cls, spec: Mapping[str, Any]) -> Predictor:
        """As the program's SPEC.json says."""
        device = str(spec.get("device", "cpu"))
        if device == "cuda":
            check_a_card(spec.get("gpus", ()))
        first, *others = map(Path, spec["artifacts"])
        return cls.load(first, Path(spec["base"]), *others, device=device)

    def answers(self, rows: Iterable[Fields]) -> Iterator[list[Answer]]:
        """For each row the artifacts' answers; a forward holds as many rows as one artifact alone would take."""
        most = min(one.batch_size for one in self.loaded)
        rows = iter(rows)
        while batch := list(islice(rows, max(1, most // len(self.loaded)))):
            yield from map(list, zip(*self._answers(batch, most), strict=True))

    def _answers(self, batch: Sequence[Fields], most: int) -> list[list[Answer]]:
        """Each artifact's: in one forward, but for those that change the base (its weights, or LoRA beside them)."""
        found: dict[int, list[Answer]] = {}
        frozen = [number for number, one in enumerate(self.loaded) if not one.brought]
        for numbers in [frozen, *([number] for number, one in enumerate(self.loaded) if one.brought)]:
            some = [self.loaded[number] for number in numbers]
            asked = [Asked(one.objective, one.prompt, one.head, batch) for one in some]
            with in_place(self.host, some[0].brought if some else Brought()):
                found |= dict(zip(numbers, answer(self.host, asked, most=most), strict=True))
        return [found[number] for number in range(len(self.loaded))]

    def predict(self, rows: Iterable[dict[str, str]]) -> Iterator[dict[str, Any]]:
        """The rows with the first artifact's `prediction`."""
        first, second = tee(rows)
        for row, found in zip(first, self.answers(second), strict=True):
            yield {**row, "prediction": found[0].text}


def _checked(artifact: Path, base: Path, found: str) -> tuple[dict[str, Any], JobRecipe]:
    faults = manifest_faults(artifact)
    if faults:
        raise BadInput(f"the artifact is damaged: {'; '.join(faults)}", where=str(artifact))
    facts, recipe = _read_facts(artifact)
    recipe = with_files_of(ArtifactPaths(artifact), recipe)
    if recipe.method.type == "lm-adapt":
        what = "it is a base, and predicts nothing by itself"
        raise BadInput(what, where=str(artifact), hint="register it with `ptq base add NAME ARTIFACT`")
    if facts["base"]["fingerprint"] != found:
        raise BadInput("these are not the weights that the artifact was trained on", where=str(base))
    refuse_changes(facts["base"].get("companions") or {}, base, "the artifact was trained")
    return facts, recipe


def _read_facts(artifact: Path) -> tuple[dict[str, Any], JobRecipe]:
    path = ArtifactPaths(artifact).facts
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
    return exit_code_of(partial(_predict, spec))


def _predict(spec: Mapping[str, Any]) -> None:
    for found in Predictor.of_spec(spec).answers(_rows(sys.stdin)):
        sys.stdout.write(json.dumps([_told(one) for one in found], ensure_ascii=False) + "\n")
        sys.stdout.flush()


def exit_code_of(work: Callable[[], None]) -> int:
    """Of a program that does this; what is wrong is on standard error then."""
    try:
        work()
    except torch.OutOfMemoryError as error:
        hint = "what is on the card beside this? `nvidia-smi`; a smaller `train.eval_batch_size` takes less"
        sys.stderr.write(f"ptq: the GPU's memory does not suffice: {error}\n  {hint}\n")
        return PtqError.exit_code
    except PtqError as error:
        sys.stderr.write(f"ptq: {error}\n")
        return error.exit_code
    return 0


def _told(answer: Answer) -> dict[str, Any]:
    return {"text": answer.text, "probabilities": answer.probabilities}


def _rows(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    for number, line in enumerate(lines, start=1):
        where = f"input line {number}"
        row = _object(line)
        if row is None:
            raise BadData("not a JSON object of fields", where=where)
        yield {name: _text(name, value, where) for name, value in row.items()}


def _object(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _text(name: str, value: Any, where: str) -> str:
    try:
        return field_text(value)
    except ValueError as error:
        raise BadData(f"the field {name} {error}", where=where) from error


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command that started this, which then ends it
    sys.exit(main(sys.argv[1:]))
