"""The only reader of environment variables. One frozen record, built when asked for."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass
from pathlib import Path

REGISTRY_FILE = "registry.db"


@dataclass(frozen=True)
class Settings:
    home: Path  #: PTQ_HOME: holds registry.db, jobs/, runs/ and store/
    registry_url: str  #: a SQLAlchemy URL
    user: str
    offline: bool  #: HF_HUB_OFFLINE: never ask the hub
    allow_remote_code: bool  #: PTQ_ALLOW_REMOTE_CODE=1: this worker may run a base's own code


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
        user=env.get("PTQ_USER") or _user(),
        offline=env.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "ON", "YES"},  # as huggingface_hub reads it
        allow_remote_code=env.get("PTQ_ALLOW_REMOTE_CODE", "") == "1",
    )


def child_environment(**extra: str) -> dict[str, str]:
    """The environment for a process that we start: ours, plus `extra`."""
    return {**os.environ, **extra}


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
