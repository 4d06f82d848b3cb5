"""What a benchmark that was cut has measured, so that the next one goes on from there."""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from orchestrator.paths import write_atomic
from orchestrator.training.environment import code_digest, versions
from tests.benchmarks.bench_world import Shape

_HERE = Path(__file__).parent


def key_of(shape: Shape) -> str:
    return " ".join(map(str, astuple(shape)))


@dataclass
class State:
    """Figures of one day, one code and one machine: others are not to be mixed with them."""

    path: Path | None  #: None: nothing is kept
    found: dict[str, Any]

    @classmethod
    def open(cls, what: str, *, keep: bool, fresh: bool) -> State:
        if not keep:
            return cls(None, {})
        own = "".join(path.read_text(encoding="utf-8") for path in sorted(_HERE.glob("bench*.py")))
        facts = [what, code_digest(), own, versions(), platform.node(), time.strftime("%Y-%m-%d")]
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / "ptq-bench" / f"{name}.json"
        known = {} if fresh or not path.exists() else json.loads(path.read_text(encoding="utf-8"))
        if known:
            print(f"going on from {path}: {len(known) - 1} rows are there; --fresh measures them again")
        return cls(path, known)

    def save(self) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, json.dumps(self.found).encode())

    def forget(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
