"""Whose a folder of a job or a run is.

A number alone may come to stand for another job or run: a registry is made anew in an old home, or an older copy of it
is put back. What lies under that number then is other work, and its events, its artifact and its last words would be
taken for this job's. So each goes by a token too, which no other has: `owner.json` says whose a job's folder is,
`run.json` whose a run's. What is another's is set aside under a new name: it is never read and never removed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.paths import JobPaths, RunPaths, read_json, set_aside, write_json
from orchestrator.registry import history, jobs
from orchestrator.registry.jobs import Job
from orchestrator.registry.storage.engine import Registry

Say = Callable[[str], None]


@dataclass(frozen=True)
class Owner:
    """Of a job's folder."""

    job: str | None  #: its token; None: it was submitted before tokens were kept
    attempt: int
    run: str  #: token of the run in which the attempt is made

    def may_have(self, folder: JobPaths) -> bool:
        """Whether the folder is this job's, and knows of no attempt that the registry has yet to make."""
        try:
            raw = read_json(folder.owner)
            found = Owner(raw["job"], int(raw["attempt"]), raw["run"])
        except FileNotFoundError:
            # An earlier version of ptq has written no owner. A request to stop may be there before anything else.
            return self.job is None or _names(folder) <= {folder.stop_request.name}
        except (ValueError, KeyError, TypeError):
            return False
        return found.job == self.job and (found.attempt < self.attempt or found == self)


def clear_job_folder(registry: Registry, job: Job, run: str, *, actor: str, at: float, say: Say) -> None:
    """See that nothing lies where a live job's present attempt works but its own; `run`: the token of its run."""
    folder = registry.paths.job(job.id)
    if not folder.root.is_dir() or Owner(job.token, job.attempt, run).may_have(folder):
        return
    text = "its folder held another job's work, or later work than this registry knows of, and was set aside"
    with registry.write() as conn:  # first: what comes now is read from its beginning
        jobs.set_progress(conn, job.id, job.attempt, step=0, steps=job.steps, events_offset=0)
        history.note(conn, job.id, job.attempt, actor=actor, at=at, kind="warning", detail={"message": text})
    say(f"job {job.id}: what lay in {folder.root} is not this job's; it is in {set_aside(folder.root).name} now")


def own_job_folder(folder: JobPaths, job: Job, run: str) -> None:
    """Say whose it is, before anything else is written there."""
    owner = asdict(Owner(job.token, job.attempt, run))
    if not folder.owner.exists() or read_json(folder.owner) != owner:
        write_json(folder.owner, owner)


def clear_run_folder(paths: RunPaths, number: int, token: str, *, say: Say) -> None:
    if _is_held(paths, token):
        say(f"run {number}: what lay in {paths.root} is another run's; it is in {set_aside(paths.root).name} now")


def _is_held(paths: RunPaths, token: str) -> bool:
    """Whether another run has left its folder under this one's number."""
    try:
        raw: Any = read_json(paths.spec)
        return bool(raw["token"] != token)
    except FileNotFoundError:  # it is written first
        return any(path.exists() for path in (paths.exit_record, paths.heartbeat, paths.supervisor))
    except (ValueError, KeyError, TypeError):
        return True


def _names(folder: JobPaths) -> set[str]:
    return {path.name for path in folder.root.iterdir()}
