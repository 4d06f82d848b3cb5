"""The most memory that a program ever held."""

from __future__ import annotations

from pathlib import Path

import torch


def peak_bytes() -> int:
    """On a GPU what the allocator held there at its peak; else this process's largest resident size.

    `ru_maxrss` would be no answer: a program starts with that of the one that has started it.
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
