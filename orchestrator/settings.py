"""The only reader of environment variables and of queue.toml, each a frozen record, built when asked for."""

from __future__ import annotations

import getpass
import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator import sharing
from orchestrator.errors import BadInput

REGISTRY_FILE = "registry.db"
POLICY_FILE = "queue.toml"


@dataclass(frozen=True)
class Settings:
    home: Path
    #: PTQ_HOME: the folder that holds registry.db, jobs/, runs/ and store/; default: the nearest parent folder with a
    #:  registry.db of this account, of root or of a group in it, else the current folder
    registry_url: str  #: PTQ_REGISTRY: a SQLAlchemy URL; default: SQLite in PTQ_HOME
    user: str  #: PTQ_USER: who submits; default, and in a shared home always: the account's name
    offline: bool  #: HF_HUB_OFFLINE: with 1 the hub is never asked
    allow_remote_code: bool  #: PTQ_ALLOW_REMOTE_CODE: with 1 a base's own code may run here
    uid: int  #: the account; decides whose jobs are whose
    grace_seconds: float  #: PTQ_GRACE: seconds between TERM (checkpoint and leave) and KILL; default: 30
    run_memory: int | None  #: PTQ_RUN_MEMORY: bytes of host memory for a run whose recipe names none; default: no limit
    tracking: tuple[str, ...] = ()  #: PTQ_TRACKING: trackers, with commas, of the jobs whose recipes name none
    fake_gpus: Path | None = None  #: PTQ_FAKE_GPUS: a file that stands for this box's GPUs, to try the queue out
    threads: int = 1
    #: PTQ_THREADS: CPU threads of what a command computes here itself (`ptq predict`, `ptq base pretrain`); default:
    #:  OMP_NUM_THREADS, else all cores that it may use, in a shared home a quarter of them
    visible_gpus: tuple[str, ...] | None = None
    #: CUDA_VISIBLE_DEVICES: cards granted to this shell, for `ptq predict`; a worker goes by `--gpus`


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
        tracking=_names(env.get("PTQ_TRACKING")),
        fake_gpus=Path(env["PTQ_FAKE_GPUS"]) if env.get("PTQ_FAKE_GPUS") else None,
        threads=int(_positive(env, "PTQ_THREADS", 0.0)) or fair_threads(env, shared=sharing.is_shared(home)),
        visible_gpus=_visible(env.get("CUDA_VISIBLE_DEVICES")),
    )


def fair_threads(env: Mapping[str, str], *, shared: bool) -> int:
    """What OMP_NUM_THREADS says; else the cores that this process may use, in a shared home a quarter of them."""
    said = env.get("OMP_NUM_THREADS", "")
    if said.isdecimal() and int(said):
        return int(said)
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    return max(1, cores // _SHARED_PART) if shared else cores


@dataclass(frozen=True)
class Team:
    members: frozenset[str]
    quota: int | None = None  #: GPUs at once, all members together


@dataclass(frozen=True)
class Policy:
    """How the queue shares a box: PTQ_HOME/queue.toml; every key may be left out (see docs/howto/shared-box.md)."""

    half_life: float = 7 * 86400.0  #: seconds after which a used GPU-hour counts half
    ageing: float = 3 * 86400.0  #: waiting this many seconds lifts a job by one priority class
    turn: float | None = 3600.0  #: seconds that a run is left alone before it may have to make room; None: always
    quotas: Mapping[str, int] = field(default_factory=dict)  #: user (or *: everybody else) -> GPUs at once
    weights: Mapping[str, float] = field(default_factory=dict)  #: user -> part of the box; default: 1
    teams: Mapping[str, Team] = field(default_factory=dict)
    notify_command: tuple[str, ...] = ()  #: started when a job has finished, with its facts as JSON on stdin
    notify_webhook: str | None = None  #: gets the same JSON by POST

    def quota(self, user: str) -> int | None:
        return self.quotas.get(user, self.quotas.get("*"))

    def teams_of(self, user: str) -> list[str]:
        return [name for name, team in self.teams.items() if user in team.members]

    def quotas_on(self, user: str) -> list[tuple[str, int, frozenset[str]]]:
        """(whose, how many GPUs at once, who counts)"""
        own = self.quota(user)
        found = [] if own is None else [(user or "the user", own, frozenset({user}))]
        teams = [(name, self.teams[name]) for name in self.teams_of(user)]
        return found + [(f"team {name}", team.quota, team.members) for name, team in teams if team.quota is not None]


def load_policy(home: Path) -> Policy:
    """Read queue.toml; without one, the defaults. Raises BadInput with the key at fault."""
    path = home / POLICY_FILE
    try:
        with path.open("rb") as file:
            _check_writer(os.fstat(file.fileno()), home, path)
            raw = tomllib.load(file)
    except FileNotFoundError:
        return Policy()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"not TOML: {error}", where=str(path)) from None
    except OSError as error:
        raise BadInput(f"cannot be read ({error.strerror})", where=str(path)) from None
    try:
        return _policy(raw)
    except (ValueError, TypeError, AttributeError) as error:
        raise BadInput(str(error), where=str(path), hint="docs/howto/shared-box.md lists its keys") from None


def parse_duration(text: str) -> float:
    """`90s`, `30m`, `4h`, `1d12h` -> seconds. Raises ValueError."""
    if not re.fullmatch(r"(\d+(\.\d+)?[smhd])+", text):
        raise ValueError("not a duration; write for example 90s, 30m, 4h or 1d12h")
    return sum(float(number) * _UNITS[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)([smhd])", text))


def child_environment(**extra: str) -> dict[str, str]:
    """The environment for a process that we start for this person here: ours, plus `extra`."""
    return {**os.environ, **extra}


def training_environment(**extra: str) -> dict[str, str]:
    """The environment for what a worker starts for anybody: the part of ours that training needs, plus `extra`.

    What a run does not have it cannot print: no password, token or key of the worker's account gets into a log that the
    group reads. PTQ_PASS_ENV names more, with commas.
    """
    more = _names(os.environ.get("PTQ_PASS_ENV"))
    kept = {name: value for name, value in os.environ.items() if name in more or _is_harmless(name)}
    return {**kept, **extra}


def wandb_mode() -> str:
    """What W&B is told: offline, unless its key is here or WANDB_MODE asks for something else."""
    asked = os.environ.get("WANDB_MODE")
    return asked or ("online" if os.environ.get("WANDB_API_KEY") and not load_settings().offline else "offline")


def without_secrets(text: str) -> str:
    """A text that others wrote, for a log or a registry: no password of an address, no value of a secret variable."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and not _is_harmless(name) and _SECRET.search(name.upper()):
            text = text.replace(value, "***")
    return re.sub(r"(\w+://)(?:[^/@\s]+|[^/:@\s]*:[^@\s]*)@(?:[^/@\s]*@)*", r"\1***@", text)


def failpoints() -> str | None:
    """PTQ_FAILPOINTS, for tests alone: see `failpoints`."""
    return os.environ.get("PTQ_FAILPOINTS") or None


GRACE_SECONDS = 30.0
_SHARED_PART = 4  #: colleagues' runs and shells have the other three quarters
_NEEDED = frozenset(
    "PATH HOME USER LOGNAME SHELL LANG LANGUAGE TZ TMPDIR TEMP TMP LD_LIBRARY_PATH LD_PRELOAD VIRTUAL_ENV CC CXX "
    "MAX_JOBS TOKENIZERS_PARALLELISM HOSTNAME "
    # Where trackers write. Not their run's name or number: a run has many jobs.
    "MLFLOW_TRACKING_URI MLFLOW_EXPERIMENT_NAME MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_INSECURE_TLS "
    "MLFLOW_TRACKING_SERVER_CERT_PATH WANDB_MODE WANDB_BASE_URL WANDB_ENTITY WANDB_PROJECT".split()
)
_NEEDED_FAMILIES = tuple(
    "LC_ PYTHON PTQ_ HF_ TRANSFORMERS_ TORCH PYTORCH_ CUDA CUBLAS_ CUDNN_ NVIDIA_ NCCL_ GLOO_ OMP_ MKL_ OPENBLAS_ "
    "KMP_ GOMP_ XDG_ DS_ DEEPSPEED_ ACCELERATE_ TRITON_ CONDA_ COVERAGE_".split()
)
_SHORTEST_SECRET = 6  #: characters; a shorter value would blot out words
_SECRET = re.compile(r"(^|_)(TOKENS?|SECRETS?|PASSWORD|PASSWD|PASS|KEYS?|CREDENTIALS?|AUTH|REGISTRY)(_|$)|APIKEY")


def _is_harmless(name: str) -> bool:
    return (name in _NEEDED or name.startswith(_NEEDED_FAMILIES)) and not _SECRET.search(name.upper())


def _names(text: str | None) -> tuple[str, ...]:
    """With commas between them."""
    return tuple(name for part in (text or "").split(",") if (name := part.strip()))


def _visible(text: str | None) -> tuple[str, ...] | None:
    """As CUDA reads it: nothing behind a -1 counts."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    return tuple(names[: next((i for i, name in enumerate(names) if name in {"", "-1", "NoDevFiles"}), len(names))])


def _positive(env: dict[str, str], name: str, otherwise: float) -> float:
    text = env.get(name, "")
    try:
        value = float(text) if text else otherwise
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise BadInput(f"not a number: {text!r}", where=name, hint="unset it, or give a number of seconds or bytes")
    return value


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_KEYS = ("half_life", "ageing", "turn", "quota", "weight", "team", "notify")


def _check_writer(found: os.stat_result, home: Path, path: Path) -> None:
    """In a shared home only the account that made it, elsewhere this one: the file sets others' quotas, and names a
    command that the worker's account runs."""
    if sharing.is_shared(home):
        keeper, others = home.stat().st_uid, found.st_mode & 0o022
    else:
        keeper, others = os.getuid(), 0
        if keeper == 0:  # root at work in somebody's home, as in a container
            keeper = home.stat().st_uid
    if found.st_uid not in {0, keeper} or others:
        who = sharing.account_name(keeper)
        hint = f"as {who}: `chown {who} {path} && chmod go-w {path}`"
        raise BadInput(f"may be written by others than {who}, so it is not followed", where=str(path), hint=hint)


def _policy(raw: Mapping[str, Any]) -> Policy:
    _known(raw, _KEYS, "")
    notify = _table(raw, "notify")
    _known(notify, ("command", "webhook"), "notify.")
    made: dict[str, Any] = {key: _seconds(raw, key) for key in ("half_life", "ageing") if key in raw}
    if "turn" in raw:
        made["turn"] = None if raw["turn"] == "never" else _seconds(raw, "turn")
    return Policy(
        **made,
        quotas={user: _count(value, f"quota.{user}") for user, value in _table(raw, "quota").items()},
        weights={user: _weight(value, f"weight.{user}") for user, value in _table(raw, "weight").items()},
        teams={name: _team(value, f"team.{name}") for name, value in _table(raw, "team").items()},
        notify_command=tuple(_texts(notify.get("command", []), "notify.command")),
        notify_webhook=None if "webhook" not in notify else _url(notify["webhook"]),
    )


def _team(raw: Any, where: str) -> Team:
    if not isinstance(raw, dict):
        raise ValueError(f"{where}: write [{where}] with members and quota")
    _known(raw, ("members", "quota"), f"{where}.")
    quota = _count(raw["quota"], f"{where}.quota") if "quota" in raw else None
    return Team(frozenset(_texts(raw.get("members", []), f"{where}.members")), quota)


def _known(raw: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    unknown = [key for key in raw if key not in keys]
    if unknown:
        raise ValueError(f"{where}{unknown[0]}: no such key; known are {', '.join(keys)}")


def _table(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = raw.get(key, {})
    if not isinstance(found, dict):
        raise ValueError(f"{key}: write a table, [{key}]")
    return found


def _seconds(raw: Mapping[str, Any], key: str) -> float:
    try:
        value = parse_duration(raw[key]) if isinstance(raw[key], str) else 0.0
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    if value <= 0:
        raise ValueError(f'{key}: write a duration such as "1h" or "7d"')
    return value


def _count(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{where}: write a number of GPUs")
    return value


def _weight(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise ValueError(f"{where}: write a number above 0")
    return float(value)


def _texts(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f'{where}: write a list of texts, ["…", "…"]')
    return value


def _url(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith(("http://", "https://")):
        raise ValueError("notify.webhook: write an address that begins with http:// or https://")
    return value


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container that runs under a number without a name
        return str(os.getuid())


def _nearest_home(start: Path) -> Path:
    """Not a stranger's, unless a group shares it: who can write in a parent folder could leave commands there."""
    for folder in (start, *start.parents):
        registry = folder / REGISTRY_FILE
        if registry.is_file() and (sharing.is_shared(folder) or registry.stat().st_uid in {0, os.getuid()}):
            return folder
    return start
