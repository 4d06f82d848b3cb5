"""Where everything lies under PTQ_HOME, and how a file is written so that no one ever sees half of it.

    registry.db              jobs, datasets, metrics, artifacts
    jobs/<id>/               one job, over all its attempts  (JobPaths)
    runs/<id>/               one launched group of processes (RunPaths); a run may host several jobs
    calibrations/<name>.json what a step costs on a base and a kind of device, as measured there (cost.Cost)
    store/datasets/<digest>  immutable dataset versions
    store/artifacts/<digest> immutable artifacts
    tracking/                what trackers keep here: tensorboard/, mlflow.db, wandb/

These classes own every file name below PTQ_HOME; nobody else spells one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ASIDE = ".aside-"  #: in the name of a folder that was set aside


@dataclass(frozen=True)
class HomePaths:
    root: Path

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def tracking(self) -> Path:
        return self.root / "tracking"

    @property
    def worker_lock(self) -> Path:
        return self.root / "worker.lock"

    def job(self, job_id: int) -> JobPaths:
        return JobPaths(self.jobs / str(int(job_id)))

    def run(self, run_id: int) -> RunPaths:
        return RunPaths(self.runs / str(int(run_id)))

    def numbered(self) -> list[Path]:
        """`jobs` and `runs`, where folders of any job or run lie in them."""
        kept = (self.jobs, self.runs)
        return [one for one in kept if one.is_dir() and any(entry.name.isdecimal() for entry in one.iterdir())]

    def set_aside(self) -> list[Path]:
        """Folders of jobs and runs that were another registry's."""
        return sorted(folder for one in (self.jobs, self.runs) for folder in one.glob(f"*{ASIDE}*"))

    def calibration(self, name: str) -> Path:
        return self.root / "calibrations" / f"{name}.json"

    def dataset(self, digest: str) -> Path:
        return self.store / "datasets" / folder_name(digest)

    def artifact(self, digest: str) -> Path:
        return self.store / "artifacts" / folder_name(digest)


@dataclass(frozen=True)
class JobPaths:
    """A job's folder: the only place where the ledger tower and the tensor tower meet."""

    root: Path

    @property
    def home(self) -> HomePaths:
        """In which it lies."""
        return HomePaths(self.root.parent.parent)

    @property
    def recipe(self) -> Path:
        """The recipe exactly as it was submitted."""
        return self.root / "recipe.yaml"

    @property
    def spec(self) -> Path:
        """The resolved job, written by the worker at each claim (see `jobspec.JobSpec`)."""
        return self.root / "job.json"

    @property
    def owner(self) -> Path:
        """Whose folder this is (see `dispatch.running.places`)."""
        return self.root / "owner.json"

    @property
    def events(self) -> Path:
        """What training reports, appended line by line (see `events`)."""
        return self.root / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    @property
    def stop_request(self) -> Path:
        """Asks the training program to let this job go at a step boundary: {"attempt": …, "why": cancel | preempt}."""
        return self.root / "stop.json"

    def tracked(self, tracker: str) -> Path:
        """Which run the job is in a tracker that gives out numbers of its own."""
        return self.root / f"{tracker}.json"

    def artifact(self, attempt: int) -> Path:
        """What this attempt leaves; the worker moves it into the store."""
        return self.root / f"artifact-{attempt}"

    def own_file(self, digest: str, name: str) -> Path:
        """The job's copy of a file that its recipe names, made when it first starts."""
        return self.root / "files" / folder_name(digest) / name

    @property
    def answers(self) -> Path:
        """A folder: what an evaluation has found so far (see `training.kept`)."""
        return self.root / "answers"

    @property
    def found_labels(self) -> Path:
        """The label words that the data have chosen (see `training.label_search`)."""
        return self.root / "labels.json"


@dataclass(frozen=True)
class ArtifactPaths:
    """The folder of an artifact, in a job's folder or in the store. Its manifest is `manifest`'s."""

    root: Path

    @property
    def facts(self) -> Path:
        """What was trained, on what, how, with which result."""
        return self.root / "artifact.json"

    @property
    def prompt(self) -> Path:
        """The trained prompt and head."""
        return self.root / "prompt.safetensors"

    @property
    def base_weights(self) -> Path:
        """Of the base's weights those that were trained."""
        return self.root / "base.safetensors"

    @property
    def base(self) -> Path:
        """A folder: the base that LM adaptation has made."""
        return self.root / "base"

    @property
    def neighbours(self) -> Path:
        """The words nearest to the virtual tokens."""
        return self.root / "neighbours.json"

    @property
    def vocabulary(self) -> Path:
        """The only words that a cloze answers with, one a line."""
        return self.root / "vocabulary.txt"


@dataclass(frozen=True)
class RunPaths:
    """A run's folder: one launched group of processes under one supervisor."""

    root: Path

    @property
    def spec(self) -> Path:
        """What to launch (see `jobspec.RunSpec`)."""
        return self.root / "run.json"

    @property
    def log(self) -> Path:
        """Standard output and error of the launched processes."""
        return self.root / "run.log"

    @property
    def old_log(self) -> Path:
        """What run.log held before it grew too long (see `dispatch.running.runlog`)."""
        return self.root / "run.log.old"

    @property
    def supervisor(self) -> Path:
        """Who supervises: pid, start time, boot id, session."""
        return self.root / "supervisor.json"

    @property
    def heartbeat(self) -> Path:
        return self.root / "heartbeat"

    @property
    def stop_request(self) -> Path:
        """Its presence asks the supervisor to stop the run; holds {"why": …}."""
        return self.root / "stop.json"

    @property
    def inbox(self) -> Path:
        """Where jobs are handed to a run that is under way, one file each (see `jobspec.Ticket`)."""
        return self.root / "inbox"

    @property
    def joined(self) -> Path:
        """The same files, once the training program has taken them."""
        return self.root / "joined"

    @property
    def closed_inbox(self) -> Path:
        """The inbox under its last name: the program is about to end, and nothing can be handed in any more."""
        return self.root / "inbox.closed"

    @property
    def exit_record(self) -> Path:
        """Written last, fsynced, by the supervisor: its presence means that the run is over."""
        return self.root / "exit.json"


def folder_name(digest: str) -> str:
    """`sha256:ab12…` as a folder name; refuses anything that is not a digest."""
    algorithm, _, value = digest.partition(":")
    if algorithm != "sha256" or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise ValueError(f"not a digest: {digest!r}")
    return value


@contextmanager
def file_written_atomically(path: Path) -> Iterator[IO[bytes]]:
    """A whole file or nothing: temporary name, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_atomic(path: Path, data: bytes | str) -> None:
    """See `file_written_atomically`; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_written_atomically(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json_text(value))


def json_text(value: Any) -> str:
    """The one form in which we write JSON files."""
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def folder_written_atomically(final: Path) -> Iterator[Path]:
    """Yield an empty folder beside `final`; on success fsync its files and rename it to `final`, else remove it.

    If `final` exists already it is replaced (the old one is renamed away first, then removed).
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.partial")
    temporary.mkdir()
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                fsync_file(path)
            else:
                fsync_folder(path)
        fsync_folder(temporary)
        if final.exists():
            old = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.old")
            final.rename(old)
            try:
                temporary.rename(final)
            except BaseException:
                old.rename(final)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(final.parent)


def set_aside(folder: Path) -> Path:
    """Take a folder out of the way, whole, for somebody to look at; its new name."""
    away = folder.with_name(f"{folder.name}{ASIDE}{uuid.uuid4().hex[:8]}")
    folder.rename(away)
    fsync_folder(folder.parent)
    return away


def is_touched(folder: Path) -> bool:
    """Make a folder young again; False when it is gone.

    What clears the store away removes nothing young: whoever is about to name a folder in the registry touches it
    first. Nor does it remove what somebody holds: in a shared home another account's folder cannot be touched, but
    locked, until this process ends.
    """
    try:
        os.utime(folder)
    except FileNotFoundError:
        return False
    except PermissionError:
        return _is_held(folder)
    return True


def place_new(temporary: Path, final: Path) -> None:
    """Give a whole file its name, which nobody else has given meanwhile. Raises FileExistsError.

    A link never replaces a file, as a rename does. Where the file system has no links, the name is taken by an empty
    file first.
    """
    try:
        os.link(temporary, final)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(final, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        temporary.replace(final)
    fsync_folder(final.absolute().parent)


_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}  # as FAT, some FUSE and network shares answer


def _is_held(folder: Path) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY)  # closed by the end of the process, and the lock with it
    except FileNotFoundError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return folder.exists()


def fsync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
