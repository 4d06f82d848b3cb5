"""What a trained job leaves: its scores beside the untuned base's, and the artifact with hashes and lineage."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.errors import PtqError
from orchestrator.manifest import write_manifest
from orchestrator.paths import ArtifactPaths, folder_written_atomically, write_atomic, write_json
from orchestrator.recipe.bases import ORIGIN
from orchestrator.recipe.scores import SCORED
from orchestrator.recipe.tasks import Cloze, fixed_words
from orchestrator.states import Reason
from orchestrator.tasks.template import fill, parse
from orchestrator.training.company import LeaveRequested
from orchestrator.training.distributed import Processes
from orchestrator.training.environment import environment
from orchestrator.training.evaluate import Evaluation
from orchestrator.training.failures import met_by_all, reason_of
from orchestrator.training.job import TrainedJob
from orchestrator.training.objectives.objective import Fields
from orchestrator.training.own_files import with_own_files
from orchestrator.training.scores import FinalScores, evaluate_job, evaluation_rows
from orchestrator.training.stop import StopRequested
from orchestrator.tuning import neighbours
from orchestrator.tuning.artifact import save_prompt
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.methods.autoprompt import AutoPrompt
from orchestrator.tuning.methods.lora import KEPT, Lora
from orchestrator.tuning.own_weights import OwnWeights, save_weights

_SAMPLES = 5
_NOT_YET = "not scored yet"


@dataclass
class Results:
    """What a job is scored with at its end."""

    metrics: dict[str, dict[str, float]] = field(default_factory=dict)  #: by split
    baseline: dict[str, dict[str, float]] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)
    unscored: dict[str, str] = field(default_factory=dict)  #: split -> why it has no scores


def finish(
    host: BaseHost, job: TrainedJob, processes: Processes, between: Callable[[], None], known: FinalScores
) -> None:
    """Write the artifact (first rank), score, and write it again with its scores. Its event is the last one of a job
    that succeeded.

    So what was trained lies in the job's folder before anything is asked of it; where a split cannot be scored, the
    artifact says why, and has the scores of the others. `between` is called between the batches of the evaluations, on
    all ranks equally often. `known`: scores that are there already.
    """
    job.take_best()
    job.tell_cuts()
    near = _neighbours(host, job)
    with met_by_all(processes):
        there = {split: rows for split in SCORED if (rows := evaluation_rows(job, split)) is not None}
        if job.weights is None:  # the weights of a whole base are written once; they are in the checkpoint
            _write_artifact(host, job, Results(unscored=dict.fromkeys(there, _NOT_YET)), near, processes)
    results = Results()
    for split, rows in there.items():
        _score(host, job, split, rows, results, processes, between, known)
    with met_by_all(processes):
        job.events.flush()
        _write_artifact(host, job, results, near, processes)
        job.events.write("artifact", folder=str(job.paths.artifact(job.spec.attempt)))
        job.events.flush(sync=True)
    if processes.first:
        _clear(job)


def _clear(job: TrainedJob) -> None:
    """Nobody reads them any more: the kept answers, and what tries that were stopped while they scored have left."""
    earlier = [job.paths.artifact(attempt) for attempt in range(1, job.spec.attempt)]
    for folder in (job.paths.answers, *earlier):
        shutil.rmtree(folder, ignore_errors=True)


def _score(
    host: BaseHost,
    job: TrainedJob,
    split: str,
    rows: list[Fields],
    results: Results,
    processes: Processes,
    between: Callable[[], None],
    known: FinalScores,
) -> None:
    """The scores of a split, or why there are none: a row or a program that fails costs the scores, not the prompt."""
    ask = partial(evaluate_job, host, job, rows, split, processes, final=True, between=between)
    try:
        found = known.get((split, True)) or ask()
        results.metrics[split] = found.values
        with met_by_all(processes):
            job.events.write("metric", step=job.step, split=split, values=found.values)
            job.events.flush()
        if job.recipe.train.baseline:
            base = found if job.is_its_baseline else known.get((split, False)) or ask(tuned=False)
            results.baseline[split] = base.values
            job.events.write("baseline", split=split, values=base.values)
            if not results.samples:
                results.samples = _samples(job, rows, found, base)
                job.events.write("sample", step=job.step, split=split, rows=results.samples)
    except (StopRequested, LeaveRequested):
        raise
    except Exception as error:
        if not _costs_scores_only(error, processes):
            raise
        results.unscored[split] = str(error) or type(error).__name__
        what = "the untuned base was not scored on" if split in results.metrics else "there are no scores of"
        job.events.write("warning", message=f"{what} the {split} rows: {results.unscored[split]}")


def _costs_scores_only(error: Exception, processes: Processes) -> bool:
    """Whether another try would meet it again. Not so a full disk or memory; and all ranks have to agree."""
    if processes.world > 1 and not isinstance(error, PtqError):
        return False
    reason = reason_of(error)
    if reason is Reason.CRASHED:
        traceback.print_exception(error)
    return reason in {Reason.CRASHED, Reason.BAD_DATA, Reason.BAD_RECIPE} and not isinstance(error, OSError)


def _samples(job: TrainedJob, rows: list[Fields], tuned: Evaluation, base: Evaluation) -> list[dict[str, str]]:
    """The first rows with what the base says before and after: taken in order, not chosen."""
    return [
        {
            "input": job.encoder.plain(job.recipe.task.input, rows[tuned.numbers[i]]),
            "target": tuned.references[i][0],
            "base": base.predictions[i],
            "tuned": tuned.predictions[i],
        }
        for i in range(min(_SAMPLES, len(tuned.numbers)))
    ]


def _neighbours(host: BaseHost, job: TrainedJob) -> dict[str, Any] | None:
    """The words nearest to the virtual tokens; None where they are no input embeddings. On all ranks (ZeRO-3)."""
    embeddings = job.folded().embeddings
    return None if embeddings is None else neighbours.neighbours(host, embeddings, fixed_words(job.recipe.task))


def _write_artifact(
    host: BaseHost, job: TrainedJob, results: Results, near: dict[str, Any] | None, processes: Processes
) -> None:
    """On the first rank: the folder, in the place of one that is there."""
    if not processes.first:
        return
    facts = _facts(job, results) | environment(processes.device.type, processes.world)
    head = {} if job.head is None else {name: t.detach().cpu() for name, t in job.head.state_dict().items()}
    with folder_written_atomically(job.paths.artifact(job.spec.attempt)) as folder:
        paths = ArtifactPaths(folder)
        save_prompt(folder, job.folded(), head)
        write_json(paths.facts, facts)
        if isinstance(job.method, Lora):
            job.method.save(folder / KEPT, job.spec.base.id)
        if job.weights is not None:
            _save_base(paths, host, job, job.weights)
        if near is not None:
            write_json(paths.neighbours, near)
        own = with_own_files(job.recipe, job.paths, copy=True)
        if isinstance(own.task, Cloze) and own.task.vocabulary is not None:
            write_atomic(paths.vocabulary, Path(own.task.vocabulary).read_bytes())
        write_manifest(folder)


def _save_base(paths: ArtifactPaths, host: BaseHost, job: TrainedJob, weights: OwnWeights) -> None:
    """The weights that were trained; of LM adaptation a whole base, which says where it comes from."""
    if job.recipe.method.type != "lm-adapt":
        save_weights(paths.root, weights)
        return
    host.model.save_pretrained(paths.base)
    host.tokenizer.save_pretrained(paths.base)
    spec = job.spec
    origin = {"parent": spec.base.id, "fingerprint": spec.base.fingerprint, "method": "lm-adapt", "steps": job.step}
    write_json(
        paths.base / ORIGIN, origin | {"job": spec.job, "dataset": f"{spec.dataset.name}@{spec.dataset.version}"}
    )


def _facts(job: TrainedJob, results: Results) -> dict[str, Any]:
    spec = job.spec
    return {
        "format": 1,
        "name": spec.name,
        "method": job.recipe.method.type,
        "task": job.recipe.task.type,
        "length": job.method.length,
        "slots": job.method.slots,
        "base": {
            "id": spec.base.id,
            "revision": spec.base.revision,
            "fingerprint": spec.base.fingerprint,
            "kind": spec.base.kind,
            "companions": spec.base.companions,
        },
        "dataset": {"name": spec.dataset.name, "version": spec.dataset.version, "digest": spec.dataset.digest},
        "recipe": job.recipe.model_dump(mode="json"),
        "seed": spec.seed,
        "job": spec.job,
        "steps": job.step,
        "best": None if job.best.step < 0 else {"step": job.best.step, "value": job.best.value},
        "trained_parameters": 0 if isinstance(job.method, AutoPrompt) else sum(p.numel() for p in job.parameters),
        "demonstrations": list(job.demonstrations),
        "words": _found_words(job),
        "patterns": job.patterns.facts(),
        "metrics": results.metrics,
        "baseline": results.baseline,
        "samples": results.samples,
        "unscored": results.unscored,
        "created_at": time.time(),
    }


def _found_words(job: TrainedJob) -> dict[str, Any] | None:
    """AutoPrompt's words, and the template with them written out: it works in any tool, without the tensors.

    `same_tokens`: the base's tokenizer reads the template as just these words; not where one is a piece of a word, or
    [MASK] from the start.
    """
    if not isinstance(job.method, AutoPrompt):
        return None
    tokens, task = job.method.tokens.tolist(), job.recipe.task
    filled = fill(parse(task.input), [job.encoder.text([token]) for token in tokens])
    asked, read = (
        job.encoder.input_ids(template, job.rows[0], limit=task.max_input_tokens) for template in (task.input, filled)
    )
    same = [token if token >= 0 else tokens[-token - 1] for token in asked] == read
    return {"ids": tokens, "template": filled, "same_tokens": same}
