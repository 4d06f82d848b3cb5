"""Trackers that a recipe may name, and what has to be installed for each."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator

from orchestrator.errors import BadInput

Tracker = Literal["tensorboard", "mlflow", "wandb"]
NAMES: tuple[str, ...] = get_args(Tracker)

#: What `pip install` is told; each brings the module of the tracker's name. Full MLflow brings a server too.
_PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny", "wandb": "wandb"}


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _different(value: list[Tracker]) -> list[Tracker]:
    if len(set(value)) != len(value):
        raise ValueError("a tracker is named twice")
    return value


#: One name, or a list of them.
Trackers = Annotated[
    list[Tracker],
    AfterValidator(_different),
    BeforeValidator(_listed, json_schema_input_type=Tracker | list[Tracker]),
]


def refuse_unknown(names: Sequence[str], where: str) -> None:
    """BadInput for a tracker that there is not."""
    for name in names:
        if name not in NAMES:
            raise BadInput(f"there is no tracker {name!r}", where=where, hint=f"one or more of {', '.join(NAMES)}")


def missing(names: Sequence[str]) -> list[str]:
    """What has to be installed for these trackers and is not."""
    return [_PACKAGES[name] for name in names if find_spec(name) is None]
