"""The box's GPUs as NVML shows them: who uses which. NVML is loaded when asked for; without a driver it says so.

A card is free only if no lease of ours is on it, nobody else's process, and no process that an ended run of ours has
left behind. `FakeGpus` reads the same facts from a file, for tests and for trying the queue out on a laptop.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from orchestrator.dispatch.running import cards, processes
from orchestrator.errors import BadInput
from orchestrator.settings import Settings

#: Memory that is in use though no process shows (another container's, or one that is going): as much as a job.
UNSEEN_BYTES = 1 << 30


@dataclass(frozen=True)
class GpuProcess:
    pid: int
    user: str  #: empty where it cannot be seen
    bytes: int | None
    run: str = ""  #: the token of the run of ours that it belongs to


@dataclass(frozen=True)
class Gpu:
    index: int
    uuid: str
    name: str
    memory_bytes: int
    used_bytes: int
    processes: tuple[GpuProcess, ...] = ()
    utilisation: int | None = None  #: percent of the last moments; None: the card does not say
    fault: str = ""  #: why it should not be used, as the driver says
    claim: str = ""  #: by which a run of any home on this box holds it (`running.cards`)
    given: bool = False  #: a run does

    @property
    def slot(self) -> str:
        return f"gpu:{self.uuid}"


class GpuSource(Protocol):
    def look(self) -> list[Gpu]:
        """All GPUs that answer, by index, as they are now. Raises NoGpu where there is none."""
        ...


class NoGpu(BadInput):
    """No GPU was found."""


def gpu_source(settings: Settings) -> GpuSource:
    """This box's GPUs, or what `PTQ_FAKE_GPUS` puts in their place."""
    return Nvml() if settings.fake_gpus is None else FakeGpus(settings.fake_gpus)


def driver_version() -> str | None:
    """NVIDIA's, with the newest CUDA that it runs: `580.95.05, up to CUDA 13.0`; None where it does not say."""
    import pynvml

    try:
        pynvml.nvmlInit()
        version, cuda = pynvml.nvmlSystemGetDriverVersion(), int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None
    return f"{version}, up to CUDA {cuda // 1000}.{cuda % 1000 // 10}"


def used_by(gpu: Gpu) -> str:
    """Who uses a GPU that no job of ours holds: `bob, pid 8812, 2.0 GiB`; empty when nobody does."""
    strangers = [process for process in gpu.processes if not process.run]
    if strangers:
        return "; ".join(_describe(process) for process in strangers)
    if gpu.given:
        return "a run of another PTQ_HOME"
    if gpu.used_bytes > UNSEEN_BYTES and not gpu.processes:
        return f"a process that cannot be seen from here, {_gigabytes(gpu.used_bytes)}"
    return ""


def fault_of(gpu: Gpu) -> str:
    """Why a GPU that no job of ours holds must be left alone; empty when it is sound."""
    left = [str(process.pid) for process in gpu.processes if process.run]
    if left:
        return f"pid {', '.join(left)} of an ended run is still on it"
    return gpu.fault


def pick(gpus: Sequence[Gpu], indices: Sequence[int] | None) -> list[Gpu]:
    """The GPUs with these indices (NVML's, in PCI order); all of them for None."""
    if indices is None:
        return list(gpus)
    by_index = {gpu.index: gpu for gpu in gpus}
    missing = [index for index in indices if index not in by_index]
    if missing:
        raise NoGpu(f"there is no GPU {missing[0]}", hint=f"this box has GPUs {', '.join(map(str, sorted(by_index)))}")
    return [by_index[index] for index in dict.fromkeys(indices)]


class Nvml:
    """The real thing."""

    def look(self) -> list[Gpu]:
        import pynvml  # loads the driver's library

        hint = "give --cpu-slots N to train on the CPU"
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise NoGpu(f"no GPU found ({error})", hint=hint) from error
        try:
            return _those_that_answer(pynvml, hint)
        except pynvml.NVMLError as error:
            raise NoGpu(f"the GPUs do not answer ({error})", hint="look at `nvidia-smi`") from error
        finally:
            pynvml.nvmlShutdown()


@dataclass(frozen=True)
class FakeGpus:
    """A JSON file in the place of a driver, read anew at every look: a list with the fields of `Gpu`, or
    {"error": …} for a driver that does not answer."""

    path: Path

    def look(self) -> list[Gpu]:
        try:
            raw = json.loads(self.path.read_text(encoding="utf-8"))
            if isinstance(raw, dict):
                raise NoGpu(str(raw.get("error", "no GPU found")), where=str(self.path))
            return [self._gpu(index, one) for index, one in enumerate(raw)]
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise NoGpu(f"not a list of GPUs ({error})", where=f"PTQ_FAKE_GPUS={self.path}") from error

    def _gpu(self, index: int, raw: dict[str, Any]) -> Gpu:
        here = tuple(GpuProcess(**{"user": "", "bytes": None, **one}) for one in raw.get("processes", ()))
        usual = {"index": index, "uuid": f"GPU-fake-{index}", "name": "fake", "memory_bytes": 80 << 30, "used_bytes": 0}
        made = Gpu(**{**usual, **raw, "processes": here})
        claim = f"{hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]} {made.slot}"
        return replace(made, claim=claim, given=cards.is_held(claim))


def _those_that_answer(nvml: Any, hint: str) -> list[Gpu]:
    """A card that has fallen off the bus is still counted, and every call on it fails: the others are sound."""
    found, silent = [], None
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            found.append(_gpu(nvml, index))
        except nvml.NVMLError as error:
            silent = error
    if not found and silent is not None:
        raise silent
    if not found:
        raise NoGpu("no GPU found", hint=hint)
    return found


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = _memory(nvml, handle)
    running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    found = tuple(
        GpuProcess(entry.pid, _user(entry.pid), entry.usedGpuMemory, processes.token_of(entry.pid)) for entry in running
    )
    uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
    return Gpu(
        index, uuid, name, int(memory.total), int(memory.used), found, _utilisation(nvml, handle), _fault(nvml, handle),
        f"gpu:{uuid}", cards.is_held(f"gpu:{uuid}"),
    )  # fmt: skip


def _memory(nvml: Any, handle: Any) -> Any:
    try:  # version 2 leaves out what the driver reserves for itself
        return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except (nvml.NVMLError, AttributeError, TypeError):
        return nvml.nvmlDeviceGetMemoryInfo(handle)


def _utilisation(nvml: Any, handle: Any) -> int | None:
    try:
        return int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except (nvml.NVMLError, AttributeError):
        return None


def _fault(nvml: Any, handle: Any) -> str:
    """A card whose broken memory rows could not be replaced gives wrong numbers or dies under the next job.

    NVML reports (corrected, uncorrected, pending a reset, failed); older cards do not know the call.
    """
    try:
        _, _, pending, failed = nvml.nvmlDeviceGetRemappedRows(handle)
    except (nvml.NVMLError, AttributeError, ValueError):
        return ""
    if failed:
        return "its memory is broken: a row could not be remapped"
    return "its memory needs a reset of the GPU: rows wait to be remapped" if pending else ""


def _user(pid: int) -> str:
    import psutil

    try:
        return str(psutil.Process(pid).username())
    except (psutil.Error, KeyError):
        return ""


def _describe(process: GpuProcess) -> str:
    memory = "" if process.bytes is None else f", {_gigabytes(process.bytes)}"
    return f"{process.user or 'somebody'}, pid {process.pid}{memory}"


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
