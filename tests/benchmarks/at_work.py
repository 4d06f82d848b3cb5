"""What keeps a queue going under a proof that kills whatever it meets."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa

from orchestrator.registry.storage.engine import Registry
from orchestrator.registry.storage.tables import jobs


def kept_at_work(
    worker: subprocess.Popen[bytes] | None, command: Sequence[str], log: Path, **environment: str
) -> subprocess.Popen[bytes]:
    """The worker; another one where it has ended."""
    if worker is not None and worker.poll() is None:
        return worker
    env = {**os.environ, **environment}
    with log.open("ab") as file:
        return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file)


def try_again_at_once(registry: Registry) -> None:
    """The pause before a job's next try would grow to minutes."""
    with registry.write() as conn:
        late = (jobs.c.not_before.is_not(None), jobs.c.not_before > time.time())
        conn.execute(sa.update(jobs).where(*late).values(not_before=time.time()))
