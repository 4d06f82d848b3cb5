"""The box's GPUs as NVML shows them: who uses which. NVML is loaded when asked for; without a driver it says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.errors import BadInput

#: Memory that is in use though no process shows (another container's, or one that is going): as much as a job.
UNSEEN_BYTES = 1 << 30


@dataclass(frozen=True)
class GpuProcess:
    pid: int
    user: str  #: empty where it cannot be seen
    bytes: int | None


@dataclass(frozen=True)
class Gpu:
    index: int
    uuid: str
    name: str
    memory_bytes: int
    used_bytes: int
    processes: tuple[GpuProcess, ...] = ()

    @property
    def slot(self) -> str:
        return f"gpu:{self.uuid}"


class GpuSource(Protocol):
    def look(self) -> list[Gpu]:
        """All GPUs, by index, as they are now. Raises NoGpu where there is none."""
        ...


class NoGpu(BadInput):
    """No GPU was found."""


def used_by(gpu: Gpu) -> str:
    """Who uses a GPU that no job of ours holds; empty when it is free."""
    if gpu.processes:
        return "; ".join(_describe(process) for process in gpu.processes)
    if gpu.used_bytes > UNSEEN_BYTES:
        return f"a process that cannot be seen from here ({_gigabytes(gpu.used_bytes)})"
    return ""


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
            found = [_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            raise NoGpu(f"the GPUs do not answer ({error})", hint="look at `nvidia-smi`") from error
        finally:
            pynvml.nvmlShutdown()
        if not found:
            raise NoGpu("no GPU found", hint=hint)
        return found


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = _memory(nvml, handle)
    running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    found = tuple(GpuProcess(entry.pid, _user(entry.pid), entry.usedGpuMemory) for entry in running)
    uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
    return Gpu(index, uuid, name, int(memory.total), int(memory.used), found)


def _memory(nvml: Any, handle: Any) -> Any:
    try:  # version 2 leaves out what the driver reserves for itself
        return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except (nvml.NVMLError, AttributeError, TypeError):
        return nvml.nvmlDeviceGetMemoryInfo(handle)


def _user(pid: int) -> str:
    import psutil

    try:
        return str(psutil.Process(pid).username())
    except (psutil.Error, KeyError):
        return ""


def _describe(process: GpuProcess) -> str:
    memory = "" if process.bytes is None else f", {_gigabytes(process.bytes)}"
    return f"{process.user or 'somebody'} (pid {process.pid}{memory})"


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
