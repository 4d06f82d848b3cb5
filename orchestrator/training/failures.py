"""What goes wrong, and that all ranks of a run hear of it: one that left alone would have the others wait for ever."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from orchestrator.errors import BadData, BadInput, BadRecipe, PtqError
from orchestrator.states import Reason
from orchestrator.training.distributed import Processes
from orchestrator.training.stop import StopRequested

Told = tuple[str, str]  #: reason and message of an error, as it is told to the other ranks

#: What CUDA's own libraries say, which take their memory beside torch's allocator.
_CUDA_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


class JobFailed(PtqError):
    """A job ended for a reason of its own; the others of its run go on."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def reason_of(error: Exception) -> Reason:
    """Which of the known reasons an exception is."""
    if isinstance(error, JobFailed):
        return error.reason
    if isinstance(error, BadData):
        return Reason.BAD_DATA
    if isinstance(error, BadRecipe | BadInput):
        return Reason.BAD_RECIPE
    if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _CUDA_FULL):
        return Reason.CUDA_OOM
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return Reason.DISK_FULL
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):  # torch's words for no memory left
        return Reason.HOST_OOM
    return Reason.CRASHED


def out_of_memory(error: Exception) -> bool:
    """On the GPU or on the CPU."""
    return reason_of(error) in {Reason.CUDA_OOM, Reason.HOST_OOM}


@contextmanager
def met_by_all(processes: Processes, *, forwards: bool = False) -> Iterator[None]:
    """An error that one rank meets inside is raised on all of them; inside, no rank may wait for another.

    `forwards`: the base is asked inside, and with a sharded base they do wait. There only what all ranks meet alike can
    be agreed on: a `PtqError`; for anything else the run ends. A StopRequested goes through: they have agreed on it.
    """
    found: Exception | None = None
    try:
        yield
    except StopRequested:
        raise
    except Exception as error:
        if not may_tell(processes, error, forwards=forwards):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the forward's memory, and this error holds them
        found = error
    if processes.world > 1:
        hear(processes.gather(tell(found)), found)


def may_tell(processes: Processes, error: Exception, *, forwards: bool = True) -> bool:
    """Whether the other ranks can be told of this error: nobody waits for this one elsewhere."""
    if processes.world == 1:
        return False
    return not (forwards and processes.sharded) or isinstance(error, PtqError)


def tell(error: Exception | None) -> Told | None:
    if error is None:
        return None
    reason = reason_of(error)
    if reason is Reason.CRASHED:
        traceback.print_exception(error)
    return str(reason), str(error) or type(error).__name__


def hear(told: list[Told | None], own: Exception | None) -> None:
    """Raise what a rank has met: its own words where it is this one."""
    number = next((rank for rank, one in enumerate(told) if one is not None), None)
    if number is None:
        return
    if isinstance(own, PtqError):
        raise own
    reason, message = told[number]  # type: ignore[misc]
    raise JobFailed(Reason(reason), f"{message} (rank {number} of {len(told)})")
