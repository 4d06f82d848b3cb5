"""Slots for a command, held for as long as it runs."""

from __future__ import annotations

import signal
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from orchestrator.cli.output import render

if TYPE_CHECKING:
    from orchestrator.registry.reservations import Reservation
    from orchestrator.registry.storage.engine import Registry

POLL = 0.3
NOTE = 40  #: characters of a command line that `ptq status` has room for


@contextmanager
def holding(registry: Registry, count: int, *, seconds: float, note: str, cards: bool = False) -> Iterator[list[str]]:
    """The slots' names, this command's own until it leaves, in whatever way. `seconds`: for the queue's planning.

    `cards`: no CPU slots, though a worker may have nothing else.
    """
    from orchestrator.dispatch import hold
    from orchestrator.dispatch.signals import ended_by

    in_line = hold.gives(registry, cards=cards)
    # Between the entry and the wait a signal leaves the entry behind: whoever looks next finds its process gone.
    with ended_by(_leave, (signal.SIGHUP, signal.SIGTERM)):
        shown = textwrap.shorten(note, NOTE, placeholder=" …")
        number = (hold.ask if in_line else hold.take)(registry, count, seconds=seconds, note=shown)
        try:
            names = slots_of(registry, wait_for(registry, number, []))
            render.note(f"reservation r{number}: {', '.join(names)} for as long as this runs")
            yield names
        finally:
            take_out(registry, number)


def card_environment(names: Sequence[str]) -> dict[str, str]:
    """What makes CUDA see these cards alone, numbered as they stand here; empty for CPU slots."""
    uuids = [name.removeprefix("gpu:") for name in names if name.startswith("gpu:")]
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(uuids)} if uuids else {}


def wait_for(registry: Registry, number: int, asked: Sequence[int]) -> Reservation:
    """Until it has its slots. Ctrl-C and every other end leave the line: nobody would be there to use them.

    `asked`: signals that have come.
    """
    from orchestrator.cli.output.views import NO_WORKER, worker_is_here

    try:
        found = get(registry, number)
        if found.started_at is None and not worker_is_here(registry):
            render.note(NO_WORKER)
        with render.progress(f"reservation r{number}") as advance:
            while True:
                if asked:
                    sys.exit(128 + asked[0])
                found = get(registry, number)
                if found.started_at is not None or found.ended_at is not None:
                    return found
                advance(0, None, "waits in line; Ctrl-C leaves it")
                time.sleep(POLL)
    except BaseException:
        take_out(registry, number)
        raise


def take_out(registry: Registry, number: int) -> None:
    from orchestrator.dispatch.control import release

    ended = release(registry, [number], user=registry.settings.user, now=time.time())
    with suppress(OSError):  # the terminal may be gone
        if ended:
            render.note(f"reservation r{number} released")


def get(registry: Registry, number: int) -> Reservation:
    from orchestrator.registry import reservations

    with registry.read() as conn:
        return reservations.get(conn, number)


def refuse_released(one: Reservation) -> None:
    """Raises NotFound where somebody has released it meanwhile."""
    from orchestrator.errors import NotFound

    if one.ended_at is not None:
        raise NotFound(f"reservation r{one.id} was released before it had its GPUs")


def slots_of(registry: Registry, one: Reservation) -> list[str]:
    """Raises NotFound where somebody has released it meanwhile."""
    from orchestrator.registry import reservations

    refuse_released(one)
    with registry.read() as conn:
        return reservations.slots_of(conn, one)


def _leave(number: int) -> None:
    sys.exit(128 + number)
