"""`ptq show`: one job in full: how it went, tuned against untuned, and where it comes from."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from orchestrator.cli.common import Json, OneJob
from orchestrator.cli.output import render

if TYPE_CHECKING:
    from orchestrator.registry.jobs import Job
    from orchestrator.registry.storage.engine import Registry


def register(app: typer.Typer) -> None:
    @app.command()
    def show(
        job: OneJob,
        as_json: Json = False,
    ) -> None:
        """Show a job: recipe, result beside the untuned base's, lineage, attempts."""
        from orchestrator.cli.common import open_registry
        from orchestrator.cli.output.views import one_job
        from orchestrator.registry import metrics

        registry = open_registry()
        found = one_job(registry, job)
        with registry.read() as conn:
            numbers = metrics.latest(conn, [found.id]).get(found.id, {})
        if as_json:
            render.print_json(_json(registry, found, numbers))
        else:
            _print(registry, found, numbers)


def print_result(registry: Registry, ids: Sequence[int]) -> None:
    """What `ptq run` ends with: each job's metrics beside the base's, and where its artifact lies."""
    from orchestrator.cli.output.views import comparison
    from orchestrator.cli.waiting import read
    from orchestrator.registry import metrics

    with registry.read() as conn:
        numbers = metrics.latest(conn, ids)
    found = read(registry, ids)
    rows = [(job.id, job.name, *row) for job in found for row in comparison(numbers.get(job.id, {}))]
    if rows:
        _comparison_table(("job", "name", "split", "metric", "tuned", "untuned base"), rows)
    for job in found:
        if job.artifact_id is not None:
            render.say(f"job {job.id}: artifact a{job.artifact_id} in {_artifact_folder(registry, job)}")


def _print(registry: Registry, job: Job, numbers: Any) -> None:
    from orchestrator.cli.output.views import clock, comparison, group_name, progress_of

    facts = {
        "job": f"{job.id} {job.name}" + (f" (group {group_name(job.group_id)})" if job.group_id else ""),
        "state": " ".join(str(part) for part in (job.state, job.result, job.reason) if part),
        "message": job.message,
        "waits": _waits(registry, job),
        "user": job.user,
        "method": f"{job.method}, seed {job.seed}",
        "base": f"{job.base['id']} ({job.base['kind']}), {job.base['fingerprint']}",
        "dataset": f"{job.dataset}, {job.dataset_digest}",
        "artifact": f"a{job.artifact_id} in {_artifact_folder(registry, job)}" if job.artifact_id else None,
        "digest": _artifact_digest(registry, job),
        "progress": progress_of(job),
        "shares": ", ".join(f"job {other}" for other in _company(registry, job)) or _alone(registry, job),
        "attempts": f"{job.attempt}, {job.counted_attempts} of {job.max_attempts} counted",
        "after": ", ".join(map(str, job.after)),
        "submitted": clock(job.submitted_at),
        "started": clock(job.started_at),
        "finished": clock(job.finished_at),
        "took": render.duration(job.finished_at - job.started_at) if job.finished_at and job.started_at else None,
        "folder": str(registry.paths.job(job.id).root),
        "command": " ".join(job.command),
        **ran_on(registry, job),
    }
    for name, value in facts.items():
        if value:
            render.say(f"{name + ':':<11}{value}")
    if rows := comparison(numbers):
        render.say()
        _comparison_table(("split", "metric", "tuned", "untuned base"), rows)
    patterns_table(_patterns(registry, job))
    render.say()
    render.say(job.source.rstrip())


def patterns_table(patterns: Sequence[Mapping[str, Any]]) -> None:
    """PET's patterns, where they do not count alike."""
    if patterns:
        render.say()
        rows = [(render.number(one["weight"]), render.number(one["accuracy"]), one["input"]) for one in patterns]
        render.table(("weight", "right untuned", "pattern"), rows, right=("weight", "right untuned"))


def environment_of(registry: Registry, job: Job) -> dict[str, Any]:
    """What the newest attempt that told computed with: versions, code, hardware."""
    from orchestrator.events import events_of

    if not job.attempt:  # it has no folder yet
        return {}
    told = deque(events_of(registry.paths.job(job.id).events, {"environment"}), maxlen=1)
    return {key: told[0].get(key) for key in ("versions", "code", "hardware")} if told else {}


def ran_on(registry: Registry, job: Job) -> dict[str, str]:
    """The same for people, in two lines."""
    told = environment_of(registry, job)
    if not told:
        return {}
    hardware, versions = told["hardware"], told["versions"]
    cards = ", ".join(card["model"] for card in hardware.get("gpus", []))
    where = (
        f"{cards} (driver {hardware.get('driver')})" if cards else f"{hardware['cpu']}, {hardware['threads']} threads"
    )
    names = ", ".join(f"{name} {versions[name]}" for name in ("ptq", "python", "torch", "transformers"))
    return {"ran on": f"{hardware['host']}: {where}", "versions": f"{names}; code {str(told['code'])[7:19]}"}


def _company(registry: Registry, job: Job) -> list[int]:
    """The other live jobs in its run, while it is in it."""
    from orchestrator.registry import jobs
    from orchestrator.states import LIVE

    if job.run_id is None or job.state not in LIVE:
        return []
    with registry.read() as conn:
        return [other.id for other in jobs.live_jobs_of(conn, job.run_id) if other.id != job.id]


def _waits(registry: Registry, job: Job) -> str | None:
    """Why it does not start, as `ptq status` says it."""
    from orchestrator.cli.output.views import waits
    from orchestrator.cli.status import queue_now
    from orchestrator.states import JobState

    if job.state is not JobState.QUEUED:
        return None
    queue = queue_now(registry, [str(job.id)], everything=False)
    return next((waits(one, queue) for one in queue.jobs if one.id == job.id), None)


def _alone(registry: Registry, job: Job) -> str:
    """Why the job, while it runs, shares its run with nobody; empty: nobody came."""
    from orchestrator.registry import history
    from orchestrator.states import LIVE, JobState

    if job.state not in LIVE:
        return ""
    with registry.read() as conn:
        happened = history.list_events(conn, job.id)
    starts = [event for event in happened if event.attempt == job.attempt and event.kind == JobState.STARTING]
    why = next((event.detail.get("alone") for event in starts), None)
    return f"no run ({why})" if why else ""


def _comparison_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    shown = [[*row[:-2], render.number(row[-2]), render.number(row[-1])] for row in rows]
    render.table(columns, shown, right=("job", "tuned", "untuned base"))


def _json(registry: Registry, job: Job, numbers: Any) -> dict[str, Any]:
    from orchestrator.cli.output.views import job_json
    from orchestrator.registry import history

    with registry.read() as conn:
        happened = [vars(event) for event in history.list_events(conn, job.id)]
    return {
        **job_json(job, numbers),
        "message": job.message,
        "max_attempts": job.max_attempts,
        "counted_attempts": job.counted_attempts,
        "run": job.run_id,
        "shares_run_with": _company(registry, job),
        "alone_because": _alone(registry, job) or None,
        "waits": _waits(registry, job),
        "seed": job.seed,
        "after": list(job.after),
        "recipe": job.recipe,
        "source": job.source,
        "command": job.command,
        "lineage": {
            "base": job.base,
            "dataset": {"ref": job.dataset, "digest": job.dataset_digest},
            "artifact": {"digest": _artifact_digest(registry, job), "folder": _artifact_folder(registry, job)}
            if job.artifact_id
            else None,
        },
        "environment": environment_of(registry, job),
        "patterns": _patterns(registry, job) or None,
        "folder": str(registry.paths.job(job.id).root),
        "events": happened,
    }


def _patterns(registry: Registry, job: Job) -> list[dict[str, Any]]:
    from orchestrator.registry.artifacts import get_artifact

    return list(get_artifact(registry, f"a{job.artifact_id}").summary.get("patterns") or ()) if job.artifact_id else []


def _artifact_digest(registry: Registry, job: Job) -> str | None:
    from orchestrator.registry.artifacts import get_artifact

    return get_artifact(registry, f"a{job.artifact_id}").digest if job.artifact_id else None


def _artifact_folder(registry: Registry, job: Job) -> str | None:
    digest = _artifact_digest(registry, job)
    return None if digest is None else str(registry.paths.artifact(digest))
