"""From a run's specification to the command and the environment that start it. Standard library only."""

from __future__ import annotations

import os
import random
import socket
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from orchestrator.errors import PtqError
from orchestrator.jobspec import RunSpec
from orchestrator.paths import RunPaths

TRAINING = "orchestrator.training.run"  #: the module that every rank runs
CONFIG = Path(__file__).with_name("accelerate.yaml")

#: Below Linux's range for outgoing connections (32768 and up), where any client may be given the port meanwhile.
PORTS = range(23_000, 32_000)

#: How a worker makes the command of a run; tests pass another one.
LaunchCommand = Callable[[RunSpec, RunPaths], list[str]]


def training_command(spec: RunSpec, paths: RunPaths) -> list[str]:
    """`accelerate launch … -m orchestrator.training.run RUN_FOLDER`.

    On CPU, several processes need --multi_gpu all the same: with --cpu, accelerate starts one process and leaves the
    others to mpirun (accelerate/utils/launch.py, prepare_simple_launcher_cmd_env); and --cpu drops DeepSpeed.
    """
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(CONFIG)]
    command += ["--num_processes", str(spec.processes), "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", str(spec.threads)]
    command += ["--main_process_port", str(spec.port)]
    if spec.zero is not None:
        command += ["--use_deepspeed", "--zero_stage", str(spec.zero)]
    elif spec.processes > 1:
        command += ["--multi_gpu"]
    elif spec.device == "cpu":
        command += ["--cpu"]
    return [*command, "-m", TRAINING, str(paths.root)]


def run_environment(spec: RunSpec) -> dict[str, str]:
    """What the run's processes find in their environment beside the worker's own. Never written to any file."""
    threads = str(spec.threads)
    extra = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "RAYON_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",  # a forked tokenizer would otherwise warn or hang
        "PYTHONUNBUFFERED": "1",  # `ptq logs -f` shows lines as they are printed
        "PYTHONSAFEPATH": "1",  # no file in the run's folder, which is the current one, is taken for a module
    }
    if spec.device == "cpu":
        # With ACCELERATE_USE_CPU accelerate silently leaves DeepSpeed out (state.py: `… == "true" and not cpu`).
        kind = {"ACCELERATE_USE_CPU": "true"} if spec.zero is None else {"DS_ACCELERATOR": "cpu"}
        return extra | kind | {"CUDA_VISIBLE_DEVICES": ""}
    # PCI order is the order of NVML; UUIDs name the same card whatever the order is.
    return extra | {"CUDA_VISIBLE_DEVICES": ",".join(spec.gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def threads_per_process(slots: int) -> int:
    """CPU threads for each process on a worker with `slots` slots in all.

    A share of the machine, whatever else runs just now: sums depend on the number of threads in their last bits, and
    a job's result must not depend on its neighbours.
    """
    return max(1, (os.cpu_count() or 1) // max(1, slots))


def free_port(taken: Collection[int] = ()) -> int:
    """A TCP port that nobody listens on at this moment and that is not in `taken` (leased to another run)."""
    candidates = [port for port in PORTS if port not in taken]
    random.shuffle(candidates)
    for port in candidates:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise PtqError(f"no free port between {PORTS.start} and {PORTS.stop}", hint="`ss -tlnp` shows who listens")
