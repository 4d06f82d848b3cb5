"""From recipes to queued jobs: everything that can be refused is refused before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.dispatch.adapted import name_faults, refuse_taken, with_base_name
from orchestrator.dispatch.labels import LabelCheck
from orchestrator.dispatch.row_check import RowCheck
from orchestrator.errors import BadInput, BadRecipe, NotFound
from orchestrator.recipe.expand import expand
from orchestrator.recipe.fit import fit_faults
from orchestrator.recipe.load import LoadedRecipe
from orchestrator.recipe.named import with_digests
from orchestrator.recipe.schema import JobRecipe, Recipe
from orchestrator.recipe.starts import ArtifactInit
from orchestrator.recipe.tracking import missing, refuse_unknown
from orchestrator.registry import jobs, workers
from orchestrator.registry.artifacts import get_artifact
from orchestrator.registry.bases import ResolvedBase, resolve_base
from orchestrator.registry.datasets import DatasetVersion, get_version
from orchestrator.registry.jobs import NewJob
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import POLICY_FILE, load_policy

PRIORITIES = {"low": 0, "normal": 50, "high": 100}


@dataclass(frozen=True)
class Planned:
    """The jobs of one recipe, ready to be queued."""

    name: str
    jobs: list[NewJob]
    dataset: str  #: NAME@VERSION, as resolved


@dataclass(frozen=True)
class Enqueued:
    group_id: int | None  #: where one recipe has become several jobs
    job_ids: list[int]


def plan(registry: Registry, loaded: LoadedRecipe, *, priority: str | None = None) -> Planned:
    """What would be queued. Raises BadRecipe with all faults of all jobs, NotFound for a missing base or dataset."""
    recipe = _with_tracking(registry, loaded)
    if recipe.base.trust_remote_code and not registry.settings.allow_remote_code:
        raise BadRecipe(
            "this installation does not run a base's own code",
            where=f"{loaded.path}: base.trust_remote_code",
            hint="if you trust that code, set PTQ_ALLOW_REMOTE_CODE=1 here and for the worker",
        )
    bases: dict[tuple[str, str | None], ResolvedBase] = {}
    datasets: dict[str, DatasetVersion] = {}
    new, faults = [], []
    labels, rows = LabelCheck(), RowCheck()
    for unresolved in expand(recipe):
        job = with_base_name(with_stored_start(registry, unresolved))
        key = (job.base.model, job.base.revision)
        if key not in bases:
            bases[key] = resolve_base(registry, *key, offline=registry.settings.offline)
        if job.dataset not in datasets:
            datasets[job.dataset] = get_version(registry, job.dataset)
        base, data = bases[key], datasets[job.dataset]
        unfit = fit_faults(job, base.facts, data.fields, data.splits)
        faults += unfit or rows.faults(job, data) or labels.faults(job, Path(base.spec.path), data)
        new.append(_new_job(with_digests(job), loaded.source, base, data, priority))
    faults += name_faults(registry, new)
    if faults:
        lines = "\n  ".join(dict.fromkeys(faults))
        raise BadRecipe(f"this recipe cannot be queued:\n  {lines}", where=str(loaded.path))
    return Planned(recipe.name, new, ", ".join(version.ref for version in datasets.values()))


def enqueue(
    registry: Registry,
    planned: Sequence[Planned],
    *,
    user: str,
    after: Sequence[str],
    command: Sequence[str],
    now: float,
    after_any: Sequence[str] = (),
    at_once: int | None = None,
) -> list[Enqueued]:
    """Queue everything in one transaction, or nothing.

    `after`, `after_any`: job ids or groups that must succeed first, or just end. `at_once`: of each group, at most so
    many jobs run at a time. Raises BadInput for what could never run, however long it waited.
    """
    if (after or after_any) and not registry.exists():
        raise NotFound(f"there is no job {(*after, *after_any)[0]!r}", hint="`ptq status --all` lists every job")
    check_possible(registry, max(job.slots for one in planned for job in one.jobs), user=user, now=now)
    done = []
    with registry.write() as conn:
        refuse_taken(conn, [job for one in planned for job in one.jobs])
        before, ended = jobs.resolve(conn, after), jobs.resolve(conn, after_any)
        for one in planned:
            several = len(one.jobs) > 1
            group = jobs.add_group(conn, one.name, user=user, at=now, at_once=at_once) if several else None
            ids = jobs.add_jobs(
                conn, one.jobs, user=user, uid=registry.settings.uid, command=command, at=now, group_id=group,
                after=before, after_any=ended,
            )  # fmt: skip
            done.append(Enqueued(group, ids))
    return done


def check_possible(registry: Registry, slots: int, *, user: str, now: float) -> None:
    """Refuse what would wait for ever: more slots than any worker here has, or than the user may ever have."""
    policy = load_policy(registry.settings.home)
    for whose, quota, _ in policy.quotas_on(user):
        if slots > quota:
            hint = "ask for fewer, or have the quota raised"
            raise BadInput(
                f"{slots} slots are asked for, {whose} may have {quota} at once", where=POLICY_FILE, hint=hint
            )
    with registry.read() as conn:
        present = workers.present(conn, now=now)
    if present and slots > (most := max(len(worker.slots) for worker in present)):
        hint = "ask for fewer (resources.gpus), or start a worker with more slots first"
        raise BadInput(
            f"{slots} slots are asked for, the largest worker here has {most}: it would never start", hint=hint
        )


def submit(
    registry: Registry,
    loaded: LoadedRecipe,
    *,
    user: str,
    priority: str | None = None,
    after: Sequence[str] = (),
    command: Sequence[str] = (),
    now: float,
) -> Enqueued:
    """Check one recipe and queue its jobs."""
    planned = plan(registry, loaded, priority=priority)
    return enqueue(registry, [planned], user=user, after=after, command=command, now=now)[0]


def with_stored_start(registry: Registry, job: JobRecipe) -> JobRecipe:
    """`init: {type: artifact}` as `{type: prompt}` with the artifacts' folders: an alias may move later, a folder not.

    Raises NotFound and BadInput for a name that stands for no artifact.
    """
    init = getattr(job.method, "init", None)
    if not isinstance(init, ArtifactInit):
        return job
    folders = [str(get_artifact(registry, name).path) for name in init.artifact]
    plain = job.model_dump(exclude_unset=True)
    plain["method"]["init"] = {"type": "prompt", "path": folders, "weights": init.weights}
    return JobRecipe.model_validate(plain)


def _with_tracking(registry: Registry, loaded: LoadedRecipe) -> Recipe:
    """The recipe with its trackers, or those of PTQ_TRACKING; refuses what cannot be imported here."""
    recipe, where = loaded.recipe, f"{loaded.path}: tracking"
    if "tracking" not in recipe.model_fields_set and registry.settings.tracking:
        where = "PTQ_TRACKING"
        refuse_unknown(registry.settings.tracking, where)
        recipe = recipe.model_copy(update={"tracking": list(registry.settings.tracking)})
    needed = missing(recipe.tracking)
    if needed:
        raise BadRecipe(
            f"{' and '.join(needed)} {'is' if len(needed) == 1 else 'are'} not installed",
            where=where,
            hint=f"`pip install {' '.join(needed)}` where the worker runs too, or leave tracking out",
        )
    return recipe


def _new_job(job: JobRecipe, source: str, base: ResolvedBase, data: DatasetVersion, priority: str | None) -> NewJob:
    return NewJob(
        name=job.name,
        recipe=job.model_dump(mode="json"),
        source=source,
        seed=job.seed,
        method=job.method.type,
        base=asdict(base.spec),
        dataset_version_id=data.id,
        slots=job.resources.gpus,
        priority=PRIORITIES[priority or job.resources.priority],
        max_attempts=job.resources.max_attempts,
    )
