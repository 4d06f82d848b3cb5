"""The real worker with another training program: `python fake_worker.py PROGRAM SLOTS [until-idle] [warm]`.

SLOTS is a number of CPU slots, or `gpus` for those of PTQ_FAKE_GPUS.
"""

from __future__ import annotations

import sys

from orchestrator.dispatch.scheduling.gpus import gpu_source
from orchestrator.dispatch.scheduling.slots import CpuSlots, GpuSlots
from orchestrator.dispatch.worker import Worker
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import load_settings
from orchestrator.sharing import keep_to_the_group


def main(program: str, slots: str, *rest: str) -> None:
    keep_to_the_group(load_settings().home)
    registry = Registry.open(load_settings(), create=True)
    worker = Worker(
        registry,
        GpuSlots(source=gpu_source(load_settings())) if slots == "gpus" else CpuSlots(int(slots)),
        command=lambda spec, paths: [sys.executable, program, str(paths.root)],
        log=lambda text: print(text, flush=True),
        keep_warm=3600.0 if "warm" in rest else 0.0,
    )
    ended = worker.work(until_idle="until-idle" in rest)
    print(f"ended: signal {ended.signal}, running {ended.running}, never {ended.never}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
