"""A fault of this code is forgiven a few times, and then costs the one job that it concerns, never its neighbours.

A fault of the machine (a full disk, a busy or unwritable database) is no strike at all: it passes, and what cannot be
written now is written at a later look.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from orchestrator.errors import RegistryUnusable

MOST = 5
APART = 1.0  #: seconds: faults that follow one another faster are one

_OF_THE_MACHINE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)


def is_the_machines(error: BaseException) -> bool:
    """Whether it is the machine's fault and may pass."""
    if isinstance(error, RegistryUnusable):
        return True
    return isinstance(error, OSError) and error.errno in _OF_THE_MACHINE


@dataclass
class Strikes:
    clock: Callable[[], float] = time.monotonic
    _counts: dict[Hashable, int] = field(default_factory=dict)
    _last: dict[Hashable, float] = field(default_factory=dict)

    def out(self, what: Hashable) -> bool:
        """Count a fault; whether it was one too many."""
        now = self.clock()
        if now - self._last.get(what, -APART) >= APART:
            self._counts[what] = self._counts.get(what, 0) + 1
            self._last[what] = now
        return self._counts[what] >= MOST

    def forgive(self, what: Hashable) -> None:
        self._counts.pop(what, None)
        self._last.pop(what, None)
