"""The names under which jobs of LM adaptation register the bases they make: refused at `ptq submit` where they are
taken, given when the job has succeeded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.errors import BadInput
from orchestrator.paths import ArtifactPaths
from orchestrator.recipe.methods import LmAdapt
from orchestrator.recipe.schema import JobRecipe
from orchestrator.registry import bases, history, jobs
from orchestrator.registry.artifacts import StagedArtifact
from orchestrator.registry.bases import Base
from orchestrator.registry.jobs import Job, NewJob
from orchestrator.registry.names import check_name
from orchestrator.states import JobState

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from orchestrator.registry.storage.engine import Registry

_LIVE = [state for state in JobState if state is not JobState.FINISHED]


def with_base_name(job: JobRecipe) -> JobRecipe:
    """The job with the name that its base will have."""
    if not isinstance(job.method, LmAdapt) or job.method.register_as is None:
        return job
    name = job.method.base_name(steps=job.train.steps, seed=job.seed)
    return job.model_copy(update={"method": job.method.model_copy(update={"register_as": name})})


def without_base_name(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a job that makes a base again: the first one has the name."""
    method = {key: value for key, value in recipe["method"].items() if key != "register_as"}
    return {**recipe, "method": method}


def name_faults(registry: Registry, new: Sequence[NewJob | Job]) -> list[str]:
    """Why these jobs could not register their bases."""
    if not _wanted(new):
        return []
    with registry.read() as conn:
        return _faults(conn, new)


def refuse_taken(conn: Connection, new: Sequence[NewJob | Job]) -> None:
    """The same inside the transaction that queues them. Raises BadInput."""
    if _wanted(new) and (faults := _faults(conn, new)):
        raise BadInput("; ".join(faults), hint="choose another name")


def base_of(registry: Registry, job: Job, staged: StagedArtifact, *, at: float) -> Base | None:
    """What a job that has succeeded is to register. Raises BadInput where its artifact holds no base."""
    name = base_name(job.recipe)
    if name is None:
        return None
    folder = ArtifactPaths(registry.paths.artifact(staged.digest)).base
    return bases.local_base(name, folder, user=job.user, now=at)


def enter(conn: Connection, job: Job, base: Base, artifact: int, *, actor: str, at: float) -> None:
    """Into the registry and the job's history. Somebody may have taken the name since: the job has succeeded still."""
    if bases.keep_base(conn, base):
        detail = {"base": base.name}
        history.note(conn, job.id, job.attempt, actor=actor, at=at, kind="registered", detail=detail)
        return
    message = f"another base is called {base.name} by now; `ptq base add NAME a{artifact}` gives this one another name"
    history.note(conn, job.id, job.attempt, actor=actor, at=at, kind="warning", detail={"message": message})


def base_name(recipe: Mapping[str, Any]) -> str | None:
    method = recipe["method"]
    return method.get("register_as") if method.get("type") == "lm-adapt" else None


def _wanted(new: Sequence[NewJob | Job]) -> list[str]:
    return [name for job in new if (name := base_name(job.recipe)) is not None]


def _faults(conn: Connection, new: Sequence[NewJob | Job]) -> list[str]:
    promised = {base_name(job.recipe): job.id for job in jobs.list_jobs(conn, states=_LIVE)}
    found = []
    for name, count in Counter(_wanted(new)).items():
        if count > 1:
            found.append(f"{count} jobs would register one base {name!r}; put {{steps}} or {{seed}} into its name")
        if bases.is_taken(conn, name):
            found.append(f"there is another base {name!r}; jobs rely on it")
        if name in promised:
            found.append(f"job {promised[name]} is going to register {name!r}")
        try:
            check_name(name, "base")
        except BadInput as error:
            found.append(error.message)
    return [f"method.register_as: {fault}" for fault in found]
