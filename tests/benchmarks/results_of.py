"""Run recipes in a home, and read what came of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.report import ptq


def train(home: Path, recipes: Sequence[Path], *settings: str, slots: int = 2) -> list[dict[str, Any]]:
    """Submit, work until idle; artifact.json of each job with `seconds`, in the order of the recipes' jobs."""
    ptq(home, "submit", *map(str, recipes), *(part for setting in settings for part in ("--set", setting)))
    ptq(home, "worker", "--cpu-slots", str(slots), "--until-idle")
    jobs = {job["id"]: job for job in json.loads(ptq(home, "status", "--all", "--json", capture=True))["jobs"]}
    artifacts = json.loads(ptq(home, "artifact", "list", "--json", capture=True))
    found = []
    for artifact in sorted(artifacts, key=lambda a: a["job_id"]):
        job = jobs[artifact["job_id"]]
        facts = json.loads((Path(artifact["path"]) / "artifact.json").read_text())
        found.append(facts | {"seconds": job["finished_at"] - job["started_at"], "bytes": artifact["bytes"]})
    return found
