"""The only reader of environment variables. One frozen record, built when asked for."""

from __future__ import annotations

import getpass
import os
import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator import sharing
from orchestrator.errors import BadInput

REGISTRY_FILE = "registry.db"


@dataclass(frozen=True)
class Settings:
    home: Path  #: PTQ_HOME: holds registry.db, jobs/, runs/ and store/
    registry_url: str  #: a SQLAlchemy URL
    user: str  #: PTQ_USER or the account's name; in a shared home the account's name, whatever PTQ_USER says
    offline: bool  #: HF_HUB_OFFLINE: never ask the hub
    allow_remote_code: bool  #: PTQ_ALLOW_REMOTE_CODE=1: this worker may run a base's own code
    uid: int  #: the account; decides whose jobs are whose
    grace_seconds: float  #: PTQ_GRACE: between TERM (checkpoint and leave) and KILL
    run_memory: int | None  #: PTQ_RUN_MEMORY: bytes of host memory for a run whose recipe names none


def load_settings(environ: dict[str, str] | None = None, cwd: Path | None = None) -> Settings:
    """Read the environment.

    PTQ_HOME, else the nearest parent folder (from `cwd` upwards) that holds a registry.db, else `cwd`.
    PTQ_REGISTRY, else SQLite in PTQ_HOME. Folders are not created here.
    """
    env = dict(os.environ) if environ is None else environ
    here = Path.cwd() if cwd is None else cwd
    home = Path(env["PTQ_HOME"]).expanduser() if env.get("PTQ_HOME") else _nearest_home(here)
    home = Path(os.path.abspath(home))  # noqa: PTH100 - keeps symbolic links as the user wrote them
    return Settings(
        home=home,
        registry_url=env.get("PTQ_REGISTRY") or f"sqlite:///{home / REGISTRY_FILE}",
        user=sharing.account_name(os.getuid()) if sharing.is_shared(home) else env.get("PTQ_USER") or _user(),
        offline=env.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "ON", "YES"},  # as huggingface_hub reads it
        allow_remote_code=env.get("PTQ_ALLOW_REMOTE_CODE", "") == "1",
        uid=os.getuid(),
        grace_seconds=_positive(env, "PTQ_GRACE", GRACE_SECONDS),
        run_memory=int(_positive(env, "PTQ_RUN_MEMORY", 0.0)) or None,
    )


def child_environment(**extra: str) -> dict[str, str]:
    """The environment for a process that we start for this person here: ours, plus `extra`."""
    return {**os.environ, **extra}


def training_environment(**extra: str) -> dict[str, str]:
    """The environment for what a worker starts for anybody: the part of ours that training needs, plus `extra`.

    What a run does not have it cannot print: no password, token or key of the worker's account gets into a log that the
    group reads. PTQ_PASS_ENV names more, with commas.
    """
    more = {name.strip() for name in os.environ.get("PTQ_PASS_ENV", "").split(",")}
    kept = {name: value for name, value in os.environ.items() if name in more or _is_harmless(name)}
    return {**kept, **extra}


def failpoints() -> str | None:
    """PTQ_FAILPOINTS, for tests alone: see `failpoints`."""
    return os.environ.get("PTQ_FAILPOINTS") or None


GRACE_SECONDS = 30.0
_NEEDED = frozenset(
    "PATH HOME USER LOGNAME SHELL LANG LANGUAGE TZ TMPDIR TEMP TMP LD_LIBRARY_PATH LD_PRELOAD VIRTUAL_ENV CC CXX "
    "MAX_JOBS TOKENIZERS_PARALLELISM HOSTNAME".split()
)
_NEEDED_FAMILIES = tuple(
    "LC_ PYTHON PTQ_ HF_ TRANSFORMERS_ TORCH CUDA NVIDIA_ NCCL_ GLOO_ OMP_ MKL_ OPENBLAS_ KMP_ GOMP_ XDG_ DS_ "
    "ACCELERATE_ TRITON_ CONDA_ COVERAGE_".split()
)
_SECRET = re.compile(r"(^|_)(TOKENS?|SECRETS?|PASSWORD|PASSWD|PASS|KEYS?|CREDENTIALS?|AUTH|REGISTRY)(_|$)|APIKEY")


def _is_harmless(name: str) -> bool:
    return (name in _NEEDED or name.startswith(_NEEDED_FAMILIES)) and not _SECRET.search(name.upper())


def _positive(env: dict[str, str], name: str, otherwise: float) -> float:
    text = env.get(name, "")
    try:
        value = float(text) if text else otherwise
    except ValueError:
        value = -1.0
    if value < 0:
        raise BadInput(f"not a number: {text!r}", where=name, hint="unset it, or give a number of seconds or bytes")
    return value


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container that runs under a number without a name
        return str(os.getuid())


def _nearest_home(start: Path) -> Path:
    for folder in (start, *start.parents):
        if (folder / REGISTRY_FILE).is_file():
            return folder
    return start
