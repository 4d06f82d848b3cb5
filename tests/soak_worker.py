"""The real worker, whose jobs train for real where they have a real base: `python soak_worker.py FAKE SLOTS`."""

from __future__ import annotations

import sys
from pathlib import Path

from queue_helpers import BASE

from orchestrator.dispatch.running.launcher import training_command
from orchestrator.dispatch.scheduling.slots import CpuSlots
from orchestrator.dispatch.worker import Worker
from orchestrator.jobspec import JobSpec, RunSpec
from orchestrator.paths import JobPaths, RunPaths
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import load_settings


def main(fake: str, slots: str) -> None:
    def command(spec: RunSpec, paths: RunPaths) -> list[str]:
        job = JobSpec.read(JobPaths(Path(spec.jobs[0])).spec)
        if job.base.path == BASE["path"]:
            return [sys.executable, fake, str(paths.root)]
        return training_command(spec, paths)

    registry = Registry.open(load_settings(), create=True)
    Worker(registry, CpuSlots(int(slots)), command=command, log=lambda text: print(text, flush=True)).work()


if __name__ == "__main__":
    main(*sys.argv[1:])
