"""What a trained job leaves: its scores beside the untuned base's, and the artifact with hashes and lineage."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.manifest import write_manifest
from orchestrator.paths import NEIGHBOURS, folder_written_atomically, write_json
from orchestrator.recipe.bases import ORIGIN
from orchestrator.recipe.tasks import fixed_words
from orchestrator.tasks.template import fill, parse
from orchestrator.training.distributed import Processes
from orchestrator.training.environment import environment
from orchestrator.training.evaluate import Evaluation
from orchestrator.training.failures import met_by_all
from orchestrator.training.job import TrainedJob
from orchestrator.training.objectives.objective import Fields
from orchestrator.training.scores import SPLITS, FinalScores, evaluate_job, evaluation_rows
from orchestrator.tuning import neighbours
from orchestrator.tuning.artifact import save_prompt
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.methods.autoprompt import AutoPrompt
from orchestrator.tuning.methods.lora import KEPT, Lora
from orchestrator.tuning.own_weights import OwnWeights, save_weights

_SAMPLES = 5
ADAPTED = "base"  #: folder in an artifact with the base that LM adaptation has made


def finish(
    host: BaseHost, job: TrainedJob, processes: Processes, between: Callable[[], None], known: FinalScores
) -> None:
    """Score, then write the artifact (first rank). The artifact's event is the last one of a job that succeeded.

    `between` is called between the batches of the evaluations, on all ranks equally often. `known`: scores that are
    there already.
    """
    job.take_best()
    metrics: dict[str, dict[str, float]] = {}
    baseline: dict[str, dict[str, float]] = {}
    samples: list[dict[str, str]] = []
    for split in SPLITS:
        with met_by_all(processes):
            rows = evaluation_rows(job, split)
        if rows is None:
            continue
        found = known.get((split, True)) or evaluate_job(host, job, rows, processes, between=between)
        metrics[split] = found.values
        with met_by_all(processes):
            job.events.write("metric", step=job.step, split=split, values=found.values)
            job.events.flush()
        if job.recipe.train.baseline:
            base = known.get((split, False)) or evaluate_job(host, job, rows, processes, tuned=False, between=between)
            baseline[split] = base.values
            job.events.write("baseline", split=split, values=base.values)
            if not samples:
                samples = _samples(job, rows, found, base)
                job.events.write("sample", step=job.step, split=split, rows=samples)
    near = _neighbours(host, job)
    with met_by_all(processes):
        job.events.flush()
        if processes.first:
            ran_on = environment(processes.device.type, processes.world)
            facts = _facts(job, metrics, baseline, samples) | ran_on
            _write_artifact(host, job, facts, near)


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


def _write_artifact(host: BaseHost, job: TrainedJob, facts: dict[str, Any], near: dict[str, Any] | None) -> None:
    final = job.paths.artifact(job.spec.attempt)
    head = {} if job.head is None else {name: t.detach().cpu() for name, t in job.head.state_dict().items()}
    with folder_written_atomically(final) as folder:
        save_prompt(folder, job.folded(), head)
        write_json(folder / "artifact.json", facts)
        if isinstance(job.method, Lora):
            job.method.save(folder / KEPT, job.spec.base.id)
        if job.weights is not None:
            _save_base(folder, host, job, job.weights)
        if near is not None:
            write_json(folder / NEIGHBOURS, near)
        write_manifest(folder)
    job.events.write("artifact", folder=str(final))
    job.events.flush(sync=True)


def _save_base(folder: Path, host: BaseHost, job: TrainedJob, weights: OwnWeights) -> None:
    """The weights that were trained; of LM adaptation a whole base, which says where it comes from."""
    if job.recipe.method.type != "lm-adapt":
        save_weights(folder, weights)
        return
    host.model.save_pretrained(folder / ADAPTED)
    host.tokenizer.save_pretrained(folder / ADAPTED)
    spec = job.spec
    origin = {"parent": spec.base.id, "fingerprint": spec.base.fingerprint, "method": "lm-adapt", "steps": job.step}
    write_json(
        folder / ADAPTED / ORIGIN, origin | {"job": spec.job, "dataset": f"{spec.dataset.name}@{spec.dataset.version}"}
    )


def _facts(
    job: TrainedJob,
    metrics: dict[str, dict[str, float]],
    baseline: dict[str, dict[str, float]],
    samples: list[dict[str, str]],
) -> dict[str, Any]:
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
        "metrics": metrics,
        "baseline": baseline,
        "samples": samples,
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
