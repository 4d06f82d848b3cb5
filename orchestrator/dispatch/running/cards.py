"""Cards that a run of any PTQ_HOME on this box has been given: a name that its processes hold for as long as they live.

NVML shows who uses a card only once he has made his context on it, seconds after a claim, and a claim is seen in one
registry only. So a claim also binds the card's name as an abstract socket, which the run's supervisor and its launcher
inherit. The kernel lets it go with the last of them, whoever they belong to and however they end; nothing is left on a
disk. By then a rank that outlives both has its context. Containers with a network of their own do not see each other's.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

PATIENCE = 2.0  #: seconds: a run's supervisor ends a moment after it has said how the run went


class Held(Exception):
    """A run has this card; its name is the argument."""


@contextmanager
def holding(names: Sequence[str]) -> Iterator[list[int]]:
    """Descriptors that hold these cards, to be handed on to a run's processes. Raises Held."""
    taken: list[socket.socket] = []
    try:
        for name in names:
            taken.append(_bound(name))
        yield [one.fileno() for one in taken]
    finally:
        for one in taken:
            one.close()


def is_held(name: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(_address(name))
        except OSError:
            return False
        return True


def _bound(name: str) -> socket.socket:
    deadline = time.monotonic() + PATIENCE
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    while True:
        try:
            made.bind(_address(name))
            return made
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                made.close()
                raise Held(name) from error
            time.sleep(0.05)


def _address(name: str) -> bytes:
    return b"\0ptq:" + name.encode()[:90]  # 108 bytes at most
