"""`ptq worker --cpu-slots 1`, whose runs train in double precision and with one thread.

More threads would wait for each other where the machine has other work too.
"""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from wide_training import wide_command

from orchestrator.dispatch.scheduling.slots import CpuSlots
from orchestrator.dispatch.worker import Worker
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import load_settings

if __name__ == "__main__":
    with closing(Registry.open(load_settings())) as registry:
        worker = Worker(registry, CpuSlots(1), command=wide_command, keep_warm=5.0)
        worker.how = replace(worker.how, threads=1)
        worker.work()
