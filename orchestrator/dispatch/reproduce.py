"""The same job again: recipe, seed, rows, files and base as they were then; and whether the same came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.companions import refuse_changes
from orchestrator.dispatch.adapted import without_base_name
from orchestrator.errors import BadInput, NotFinished, NotFound
from orchestrator.jobspec import BaseSpec
from orchestrator.manifest import NAME
from orchestrator.paths import ArtifactPaths, read_json
from orchestrator.recipe.named import NamedFile, changed, changed_files, with_files
from orchestrator.recipe.schema import JobRecipe
from orchestrator.registry import datasets, history, jobs
from orchestrator.registry.artifacts import Artifact, get_artifact
from orchestrator.registry.bases import base_folder
from orchestrator.registry.jobs import Job, NewJob
from orchestrator.registry.lineage import warm_starts, with_stored_starts
from orchestrator.registry.storage.engine import Registry
from orchestrator.states import JobResult
from orchestrator.weights import fingerprint


@dataclass(frozen=True)
class Difference:
    what: str
    then: str
    now: str


@dataclass(frozen=True)
class Agreement:
    """An artifact beside that of its reproduction."""

    original: int  #: job
    repeat: int
    same: bool  #: every tensor, bit for bit
    metrics: list[tuple[str, str, float | None, float | None]]  #: split, metric, then, now
    differences: list[Difference]  #: versions, code, hardware


def repeat_job(registry: Registry, job_id: int, *, user: str, command: Sequence[str], now: float) -> int:
    """Queue the job again; its new id. Raises NotFound and BadInput when what it was made of is not there as it was."""
    with registry.read() as conn:
        job = jobs.get_job(conn, job_id)
    base = _base(registry, job)
    _check_rows(registry, job)
    for digest in warm_starts(job.recipe):
        get_artifact(registry, digest)
    recipe = without_base_name(_alone(_with_files(registry, job)))
    new = NewJob(
        name=job.name, recipe=recipe, source=job.source, seed=job.seed, method=job.method, base=base,
        dataset_version_id=job.dataset_version_id, slots=job.slots, priority=job.priority,
        max_attempts=job.max_attempts,
    )  # fmt: skip
    with registry.write() as conn:
        (made,) = jobs.add_jobs(
            conn, [new], user=user, uid=registry.settings.uid, command=command, at=now, reproduces=job.id
        )
    return made


def newest_repeat(registry: Registry, job_id: int) -> int:
    """The last job that was submitted to reproduce this one. Raises NotFound."""
    with registry.read() as conn:
        jobs.get_job(conn, job_id)
        found = history.repeats(conn, job_id)
    if not found:
        raise NotFound(f"job {job_id} was never reproduced", hint=f"`ptq reproduce {job_id}` does")
    return found[-1]


def agreement(registry: Registry, original: int, repeat: int) -> Agreement:
    """Raises NotFinished and NotFound when one of them has left no artifact."""
    with registry.read() as conn:
        again = jobs.get_job(conn, repeat)
        company = [jobs.company_of(conn, number) for number in (original, repeat)]
    if again.result is None:
        raise NotFinished(f"job {repeat} is {again.state}", hint=f"see `ptq status {repeat}`")
    if again.result is not JobResult.SUCCEEDED:
        raise NotFound(f"job {repeat} {again.result}: {again.message}", hint=f"see `ptq logs {repeat}`")
    first, second = (get_artifact(registry, str(number)) for number in (original, repeat))
    facts = [read_json(ArtifactPaths(one.path).facts) for one in (first, second)]
    return Agreement(
        original,
        repeat,
        same=_tensors(first) == _tensors(second),
        metrics=list(_metrics(facts[0].get("metrics") or {}, facts[1].get("metrics") or {})),
        differences=[*_company(*company), *_differences(facts[0], facts[1])],
    )


def _alone(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """Sums over a batch that several jobs share are rounded otherwise: in the last bits."""
    return {**recipe, "resources": {**(recipe.get("resources") or {}), "fuse": "never"}}


def _base(registry: Registry, job: Job) -> dict[str, Any]:
    """The base as it was; where its folder is gone or has another tokenizer, one that is registered and like it."""
    wanted = BaseSpec(**job.base)
    folder = base_folder(registry, job.base)
    if fingerprint(folder) != wanted.fingerprint:
        raise BadInput(
            f"these are not the weights that job {job.id} was trained on",
            where=str(folder),
            hint=f"register a folder with the fingerprint {wanted.fingerprint[:19]}…: `ptq base add NAME PATH`",
        )
    refuse_changes(wanted.companions, folder, f"job {job.id} was submitted")
    return {**asdict(wanted), "path": str(folder)}


def _with_files(registry: Registry, job: Job) -> Mapping[str, Any]:
    """The job's recipe on files as they were: where one is not any more, the copy that its artifact holds."""
    raw = with_stored_starts(job.recipe, registry.paths)
    if not changed_files(raw):
        return raw
    recipe = JobRecipe.model_validate(raw)
    try:
        held = ArtifactPaths(get_artifact(registry, str(job.id)).path)
    except (NotFound, NotFinished):
        held = None

    def where(file: NamedFile) -> Path:
        if changed(file) is None:
            return file.path
        copy = None if held is None else NamedFile(file.key, held.vocabulary, file.digest)
        if file.key == "task.vocabulary" and copy is not None and changed(copy) is None:
            return copy.path
        what = f"{file.path} {changed(file)} since job {job.id} was submitted"
        raise BadInput(what, where=file.key, hint="put it back as it was, then the job can be reproduced")

    return with_files(recipe, where).model_dump(mode="json")


def _check_rows(registry: Registry, job: Job) -> None:
    version = datasets.get_version(registry, job.dataset)
    faults = datasets.verify(version)
    if faults:
        raise BadInput(
            f"the rows of {version.ref} are not as they were: {faults[0]}",
            where=str(version.path),
            hint="see `ptq doctor`",
        )


def _tensors(artifact: Artifact) -> dict[str, str]:
    """File -> hash of everything that was trained."""
    files = read_json(artifact.path / NAME)["files"]
    return {name: str(file["sha256"]) for name, file in files.items() if name.endswith(".safetensors")}


def _metrics(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str, float | None, float | None]]:
    for split in dict.fromkeys([*then, *now]):
        left, right = then.get(split) or {}, now.get(split) or {}
        for name in dict.fromkeys([*left, *right]):
            yield split, name, left.get(name), right.get(name)


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    flat = [
        {**_flat("versions", facts), **_flat("hardware", facts), "code": facts.get("code")} for facts in (then, now)
    ]
    for key in dict.fromkeys([*flat[0], *flat[1]]):
        left, right = flat[0].get(key), flat[1].get(key)
        if left != right:
            yield Difference(key, _text(left), _text(right))


def _company(then: Sequence[int], now: Sequence[int]) -> Iterator[Difference]:
    if then or now:
        texts = [f"in one run with {', '.join(map(str, jobs))}" if jobs else "alone" for jobs in (then, now)]
        yield Difference("company", *texts)


def _flat(part: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{part}.{key}": value for key, value in (facts.get(part) or {}).items()}


def _text(value: Any) -> str:
    return "not recorded" if value is None else str(value)
