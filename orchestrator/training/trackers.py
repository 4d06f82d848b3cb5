"""Each tracker as a job uses it: opened, given numbers, finished. All in one thread; see `tracking`.

What they keep here lies under PTQ_HOME/tracking, unless their own settings name a server.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

from orchestrator.jobspec import JobSpec
from orchestrator.paths import HomePaths, JobPaths, read_json, write_json
from orchestrator.settings import wandb_mode

PROJECT = "ptq"  #: the experiment of MLflow and the project of W&B, unless their settings say another
_MOST_METRICS = 1000  # that MLflow takes in one call
_TRIES = 3  # to open MLflow's database: two runs may want to make it at the same moment
_OPENING = threading.Lock()


class Copies(Protocol):
    """A job's run in a tracker."""

    replays: bool  #: whether it wants to hear again what earlier attempts have reported

    def log(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None: ...

    def finish(self) -> None: ...


class _TensorBoard:
    """A folder of event files. An attempt that goes on voids what the earlier ones wrote and writes it again: what was
    lost with a killed process comes back, and no step stands twice."""

    replays = True

    def __init__(self, spec: JobSpec) -> None:
        place = _home(spec).tracking / "tensorboard"
        known = (place / _name(spec)).is_dir()
        self._tracker = TensorBoardTracker(_name(spec), str(place), purge_step=0 if known else None)
        with _OPENING:
            self._tracker.start()
        if not known:
            self._tracker.store_init_configuration(_settings(spec))

    def log(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        for step, values in points:
            self._tracker.log(dict(values), step)

    def finish(self) -> None:
        self._tracker.finish()


class _MLflow:
    """A run in MLflow; what it has already is not told again."""

    replays = True

    def __init__(self, spec: JobSpec) -> None:
        import mlflow

        logging.getLogger("alembic").setLevel(logging.WARNING)  # a line for each step in which it makes its database
        place = _home(spec).tracking
        kept = _known_id(spec, "mlflow")
        with _OPENING:
            if not mlflow.is_tracking_uri_set():
                place.mkdir(parents=True, exist_ok=True)
                mlflow.set_tracking_uri(f"sqlite:///{place / 'mlflow.db'}")
            self._tracker = MLflowTracker(
                PROJECT, str(place / "mlflow"), run_id=kept, run_name=_name(spec), tags={"ptq.job": str(spec.job)}
            )
            _persistently(self._tracker.start)
        self._client, self._run = mlflow.MlflowClient(), self._tracker.tracker.info.run_id
        self._last = {name: self._last_step(name) for name in self._tracker.tracker.data.metrics} if kept else {}
        if kept is None:
            write_json(JobPaths(Path(spec.folder)).tracked("mlflow"), {"id": self._run})
            # MLflow takes few signs in a name; a label's text may hold any.
            named = {re.sub(r"[^\w./ -]", "_", key)[:250]: value for key, value in _settings(spec).items()}
            self._tracker.store_init_configuration(named)

    def log(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        # In one call, where the tracker's `log` makes one for every step: a small job's steps take a millisecond.
        new = [
            Metric(name, value, now, step)
            for step, values in points
            for name, value in values.items()
            if step > self._last.get(name, -1)
        ]
        for start in range(0, len(new), _MOST_METRICS):
            self._client.log_batch(self._run, metrics=new[start : start + _MOST_METRICS])

    def finish(self) -> None:
        self._tracker.finish()

    def _last_step(self, name: str) -> int:
        return max((one.step for one in self._client.get_metric_history(self._run, name)), default=-1)


class _WandB:
    """A run in W&B: offline in PTQ_HOME/tracking/wandb without a key, to be sent with `wandb sync`. W&B itself drops
    the steps that it has when an attempt goes on."""

    replays = False

    def __init__(self, spec: JobSpec) -> None:
        import wandb

        place = _home(spec).tracking
        place.mkdir(parents=True, exist_ok=True)
        kept = _known_id(spec, "wandb") or uuid.uuid4().hex[:16]
        write_json(JobPaths(Path(spec.folder)).tracked("wandb"), {"id": kept})
        # Several runs in one process; nothing of the process itself (its output is all jobs').
        quiet = wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True, save_code=False)
        self._tracker = WandBTracker(
            PROJECT, name=_name(spec), id=kept, resume="allow", dir=str(place), mode=wandb_mode(), reinit="create_new",
            config=_settings(spec), settings=quiet,
        )  # fmt: skip
        with _OPENING:
            self._tracker.start()

    def log(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        for step, values in points:
            self._tracker.log(dict(values), step)

    def finish(self) -> None:
        self._tracker.finish()


OPEN: dict[str, Callable[[JobSpec], Copies]] = {"tensorboard": _TensorBoard, "mlflow": _MLflow, "wandb": _WandB}


def _home(spec: JobSpec) -> HomePaths:
    return JobPaths(Path(spec.folder)).home


def _name(spec: JobSpec) -> str:
    return f"{spec.name}-{spec.job}"


def _settings(spec: JobSpec) -> dict[str, Any]:
    """The resolved recipe under dotted keys, and what it was resolved to."""
    found: dict[str, Any] = {
        "job": spec.job, "base.fingerprint": spec.base.fingerprint, "dataset.digest": spec.dataset.digest,
    }  # fmt: skip
    _flatten("", spec.recipe, found)
    return found


def _flatten(prefix: str, value: Mapping[str, Any], found: dict[str, Any]) -> None:
    for key, inner in value.items():
        if isinstance(inner, dict):
            _flatten(f"{prefix}{key}.", inner, found)
        elif inner is not None:
            found[f"{prefix}{key}"] = inner if isinstance(inner, str | int | float) else json.dumps(inner)


def _known_id(spec: JobSpec, tracker: str) -> str | None:
    """Of the run that an earlier attempt began."""
    path = JobPaths(Path(spec.folder)).tracked(tracker)
    return str(read_json(path)["id"]) if path.exists() else None


def _persistently(start: Callable[[], None]) -> None:
    for left in reversed(range(_TRIES)):
        try:
            start()
            return
        except Exception:
            if not left:
                raise
            time.sleep(1.0)
