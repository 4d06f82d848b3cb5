"""Slots for a command, held for as long as it runs."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from orchestrator.cli.output import render

if TYPE_CHECKING:
    from orchestrator.registry.reservations import Reservation
    from orchestrator.registry.storage.engine import Registry

POLL = 0.3
PATIENCE = 10.0  #: seconds without a worker, which may just be started anew, until free cards are looked for
NOTE = 40  #: characters of a command line that `ptq status` has room for


@contextmanager
def holding(
    registry: Registry, count: int, *, seconds: float, note: str, otherwise: str, cards: bool = False
) -> Iterator[list[str]]:
    """The slots' names, this command's own until it leaves, in whatever way. `seconds`: for the queue's planning.

    `otherwise`: what else the person may do where no card is free. `cards`: no CPU slots, though a worker may have
    nothing else.
    """
    from orchestrator.dispatch import hold
    from orchestrator.dispatch.signals import ended_by

    def gives() -> bool:
        return hold.gives(registry, cards=cards)

    def take() -> int:
        return hold.take(registry, count, seconds=seconds, note=note, otherwise=otherwise)

    # Between the entry and the wait a signal leaves the entry behind: whoever looks next finds its process gone.
    with ended_by(_leave, (signal.SIGHUP, signal.SIGTERM)):
        number = hold.ask(registry, count, seconds=seconds, note=note) if gives() else take()
        try:
            found = wait_for(registry, number, [], instead=_once_nobody_gives(gives, take))
            if found.id != number:
                take_out(registry, number)
                number = found.id
            names = slots_of(registry, found)
            with hold.against_other_homes(registry, names):
                render.note(f"reservation r{number}: {', '.join(names)} for as long as this runs")
                yield names
        finally:
            take_out(registry, number)


def card_environment(names: Sequence[str]) -> dict[str, str]:
    """What makes CUDA see these cards alone, numbered as they stand here; empty for CPU slots."""
    uuids = [name.removeprefix("gpu:") for name in names if name.startswith("gpu:")]
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(uuids)} if uuids else {}


def brief(text: str) -> str:
    """A note that a command has by itself, short enough for `ptq status`."""
    return text if len(text) <= NOTE else text[: NOTE - 1] + "…"


def wait_for(
    registry: Registry, number: int, asked: Sequence[int], *, instead: Callable[[], int | None] = lambda: None
) -> Reservation:
    """Until it has its slots. Ctrl-C and every other end leave the line: nobody would be there to use them.

    `asked`: signals that have come. `instead`: the number of another reservation, as soon as there is one.
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
                if (other := instead()) is not None:
                    return get(registry, other)
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


def _once_nobody_gives(gives: Callable[[], bool], take: Callable[[], int]) -> Callable[[], int | None]:
    """Tries to take what is free when no worker has been there for a while; the place in line is kept until then."""
    from orchestrator.dispatch.hold import NoFreeGpu
    from orchestrator.errors import BadInput

    heard = time.monotonic()

    def look() -> int | None:
        nonlocal heard
        if gives():
            heard = time.monotonic()
        elif time.monotonic() - heard >= PATIENCE:
            heard = time.monotonic()
            with suppress(NoFreeGpu, BadInput):  # then the next worker gives it what it waits for
                return take()
        return None

    return look


def _leave(number: int) -> None:
    sys.exit(128 + number)
