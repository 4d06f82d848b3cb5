"""`job.json` and `run.json`: all that the tensor tower is told.

The worker writes them at a claim; the training program reads them and nothing else of the ledger's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import BadInput
from orchestrator.paths import read_json, write_json

FORMAT = 1


@dataclass(frozen=True)
class BaseSpec:
    id: str  #: as the user names it: hub id, folder or registered name
    path: str  #: local folder that holds config.json, tokenizer and safetensors
    revision: str  #: commit hash, or the fingerprint for a local folder
    fingerprint: str  #: see `weights.fingerprint`; checked when the weights are loaded
    kind: str  #: causal | seq2seq | masked


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
    jobs: list[str]  #: the jobs' folders
    processes: int
    device: str  #: cpu | cuda
    gpus: list[str]  #: UUIDs, empty on CPU
    zero: int | None  #: DeepSpeed ZeRO stage, or None for plain accelerate
    threads: int = 1  #: CPU threads for each process
    port: int = 0  #: for the processes' rendezvous
    grace_seconds: float = 30.0  #: between TERM (checkpoint and leave) and KILL
    time_limit_seconds: float | None = None
    format: int = FORMAT

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> RunSpec:
        return cls(**_read(path))


def _read(path: Path) -> dict[str, Any]:
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise BadInput(f"was not written by this version of ptq, which reads format {FORMAT}", where=str(path))
    return raw
