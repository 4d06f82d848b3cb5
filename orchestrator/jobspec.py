"""`job.json`, `run.json` and the tickets in a run's inbox: all that the tensor tower is told.

The worker writes them at a claim; the training program reads them and nothing else of the ledger's.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import BadInput
from orchestrator.paths import RunPaths, fsync_folder, read_json, write_json

FORMAT = 1


@dataclass(frozen=True)
class BaseSpec:
    id: str  #: as the user names it: hub id, folder or registered name
    path: str  #: local folder that holds config.json, tokenizer and safetensors
    revision: str  #: commit hash, or the fingerprint for a local folder
    fingerprint: str  #: see `weights.fingerprint`; checked when the weights are loaded
    kind: str  #: causal | seq2seq | masked
    #: See `companions.companions`; checked when the base is loaded. Empty: not written down (older jobs).
    companions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetSpec:
    name: str
    version: int
    digest: str
    path: str  #: folder of the version in the store: <split>.arrow and version.json


@dataclass(frozen=True)
class JobSpec:
    job: int
    attempt: int
    name: str
    seed: int
    recipe: dict[str, Any]  #: a `recipe.schema.JobRecipe`
    base: BaseSpec
    dataset: DatasetSpec
    folder: str  #: the job's folder (paths.JobPaths)
    format: int = FORMAT

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> JobSpec:
        raw = _read(path)
        return cls(**{**raw, "base": BaseSpec(**raw["base"]), "dataset": DatasetSpec(**raw["dataset"])})


@dataclass(frozen=True)
class RunSpec:
    run: int
    token: str  #: marks every process of the run in its environment (PTQ_RUN)
    jobs: list[str]  #: the folders of the jobs that it starts with
    processes: int
    device: str  #: cpu | cuda
    gpus: list[str]  #: UUIDs, empty on CPU
    zero: int | None  #: DeepSpeed ZeRO stage, or None for plain accelerate
    threads: int = 1  #: CPU threads for each process
    port: int = 0  #: for the processes' rendezvous
    grace_seconds: float = 30.0  #: between TERM (checkpoint and leave) and KILL
    memory_bytes: int | None = None  #: of host memory, all processes together; None: no limit
    time_limit_seconds: float | None = None  #: the largest of its first jobs'; None: one of them has none
    fuse_key: str | None = None  #: jobs with this key may join (see dispatch.scheduling.fusing); None: nobody may
    fuse_jobs: int = 1  #: how many jobs it hosts at once
    fuse_tokens: int = 0  #: how many estimated tokens a step, all jobs together
    fuse_fill: int = 0  #: from how many on a free slot is the better place for another job
    fuse_slots_first: bool = False  #: a free slot is always the better place
    fuse_slowdown: float = 8.0  #: how many times as long as alone a step may take for any job
    fuse_gain: float = 1.02  #: how many times as long separate steps must take as a common one
    fuse_turns: bool = False  #: each of its jobs has forwards of its own
    calibration: str | None = None  #: where the base's measured costs lie, or are to be written (cost.Cost)
    keep_warm_seconds: float = 0.0  #: how long it stays when its last job has left
    format: int = FORMAT

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> RunSpec:
        return cls(**_read(path))


@dataclass(frozen=True)
class Ticket:
    """A job that joins a run under way: a file `<job>-<attempt>.json` in the run's inbox."""

    job: int
    attempt: int
    folder: str  #: the job's
    time_limit_seconds: float | None
    format: int = FORMAT

    @property
    def name(self) -> str:
        return f"{self.job}-{self.attempt}.json"

    def deliver(self, run: RunPaths) -> bool:
        """See that the run has it; False when it has not and never will. May be called again and again."""
        return self.arrived(run) or self._hand_in(run) or self.arrived(run)

    def arrived(self, run: RunPaths) -> bool:
        """Whether it lies in the inbox or has been taken. In this order, twice: an inbox may be closed and reopened."""
        folders = (run.inbox, run.closed_inbox, run.inbox, run.joined)
        return any((folder / self.name).exists() for folder in folders)

    def was_taken(self, run: RunPaths) -> bool:
        return (run.joined / self.name).exists()

    def _hand_in(self, run: RunPaths) -> bool:
        draft = run.root / f".{self.name}.partial"
        write_json(draft, asdict(self))
        try:
            draft.replace(run.inbox / self.name)  # not `write_json` in place: that would make the folder anew
        except (FileNotFoundError, NotADirectoryError):
            draft.unlink(missing_ok=True)
            return False
        fsync_folder(run.root)
        return True

    @classmethod
    def read(cls, path: Path) -> Ticket:
        return cls(**_read(path))


def take_tickets(run: RunPaths) -> list[Ticket]:
    """What lies in the inbox, lowest job first; moved to `joined`, so that each is taken once."""
    try:
        names = [name for name in os.listdir(run.inbox) if not name.startswith(".")]  # noqa: PTH208 - a few times a second
    except FileNotFoundError:
        return []
    tickets = []
    for name in names:
        (run.inbox / name).replace(run.joined / name)
        tickets.append(Ticket.read(run.joined / name))
    return sorted(tickets, key=lambda ticket: ticket.job)


def jobs_seen(run: RunPaths) -> list[int]:
    """Every job that was ever in the run."""
    return sorted({int(path.name.partition("-")[0]) for path in run.joined.glob("[0-9]*-*.json")})


def close_inbox(run: RunPaths) -> bool:
    """Take the inbox away, so that no worker can hand anything in; False when there was something in it after all.

    A rename is one instant: a ticket lies in the closed inbox, and then the inbox is opened again, or its worker
    finds no inbox and keeps the job in the queue.
    """
    try:
        run.inbox.rename(run.closed_inbox)
    except FileNotFoundError:
        return True
    if any(not path.name.startswith(".") for path in run.closed_inbox.iterdir()):
        run.closed_inbox.rename(run.inbox)
        return False
    return True


def _read(path: Path) -> dict[str, Any]:
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise BadInput(f"was not written by this version of ptq, which reads format {FORMAT}", where=str(path))
    return raw
