"""Datasets of the Hugging Face hub, fetched by a program of the tensor tower (`datasets` takes seconds to import)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import BadInput, NotFound, PtqError
from orchestrator.settings import child_environment

_SOURCE = re.compile(r"hub:(?P<id>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class HubSource:
    id: str
    config: str | None
    revision: str | None


def parse_hub_source(text: str) -> HubSource | None:
    """`hub:ID[:CONFIG][@REVISION]`, or a folder that `datasets` saved; None for anything else. Raises BadInput."""
    if is_saved_folder(text):
        return HubSource(str(Path(text).absolute()), None, None)
    if not text.startswith("hub:"):
        return None
    match = _SOURCE.fullmatch(text)
    if match is None:
        raise BadInput(
            f"{text!r} is not a dataset of the hub",
            hint="write hub:ORG/NAME, hub:ORG/NAME:CONFIG or hub:ORG/NAME@REVISION",
        )
    return HubSource(match["id"], match["config"], match["revision"])


def is_saved_folder(text: str) -> bool:
    """Whether `save_to_disk` of `datasets` wrote it."""
    return any((Path(text) / name).is_file() for name in ("dataset_dict.json", "state.json"))


@dataclass(frozen=True)
class Fetched:
    files: dict[str, Path]  #: by split, JSON lines
    commit: str | None  #: None: of a folder


def fetch(source: HubSource, folder: Path) -> Fetched:
    """Write each split as JSON lines into `folder`. Raises NotFound, BadInput."""
    command = [sys.executable, "-P", "-m", "orchestrator.training.hub_dataset", source.id, str(folder)]
    for option, value in (("--config", source.config), ("--revision", source.revision)):
        command += [option, value] if value else []
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=child_environment(), check=False
    )
    if done.returncode == 0:
        told = json.loads(done.stdout)
        return Fetched({split: Path(path) for split, path in told["splits"].items()}, told["commit"])
    reason = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
    where = f"hub:{source.id}"
    if done.returncode == 3:
        raise NotFound(
            reason,
            where=where,
            hint="fetch its files where the hub can be reached, then `ptq dataset add NAME --train FILE`",
        )
    if done.returncode == 2:
        raise BadInput(reason, where=where, hint="name a configuration: hub:ORG/NAME:CONFIG")
    raise PtqError(f"fetching ended with exit code {done.returncode}: {reason}", where=where)
