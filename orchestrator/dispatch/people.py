"""Slots for people: reservations get what the plan gives them, and end when their time is over."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from orchestrator.dispatch.running import processes
from orchestrator.registry import reservations
from orchestrator.registry.reservations import Reservation
from orchestrator.registry.runs import Claimant
from orchestrator.registry.storage.engine import Registry

#: A command that holds slots and goes on is expected to need so many seconds more, said so long before.
MORE, SOON = 600.0, 60.0


@dataclass
class Reservations:
    registry: Registry
    me: Claimant
    check_still_free: Callable[[Collection[str]], None]
    log: Callable[[str], None]
    clock: Callable[[], float]
    hold_slots: bool = False  #: at the last look

    def start(self, number: int, names: tuple[str, ...]) -> None:
        self.check_still_free(names)
        with self.registry.write() as conn:
            if not reservations.start(conn, number, names, self.me, at=self.clock()):
                return
        self.log(f"reservation r{number}: has {', '.join(names)}")

    def end_those_that_are_over(self, *, half_life: float) -> None:
        """Those whose time is over, and those whose command is gone, also where they wait."""
        now = self.clock()
        with self.registry.read() as conn:
            found = reservations.unfinished(conn)
        lives = {one.id: holder_lives(one) for one in found}
        over = {one.id: why for one in found if (why := why_over(one, lives[one.id], now))}
        self.hold_slots = any(one.started_at is not None and one.id not in over for one in found)
        for one in found:
            if one.id in over:
                with self.registry.write() as conn:
                    reservations.end(
                        conn, one.id, by=over[one.id], at=now, unseen=True,
                        up_since=processes.booted_at(), half_life=half_life,
                    )  # fmt: skip
                self.log(f"reservation r{one.id} of {one.user} is over: {over[one.id]}")
            elif lives[one.id] and one.until is not None and one.until - now < SOON:
                with self.registry.write() as conn:
                    reservations.prolong(conn, one.id, one.seconds + MORE)


def holder_lives(one: Reservation) -> bool | None:
    """Whether the command that holds it does; None: it has none, or that cannot be seen from here."""
    return None if one.holder is None else processes.lives(one.holder)


def why_over(one: Reservation, lives: bool | None, now: float) -> str:
    """Empty: it goes on. Where no command is seen to live its time counts."""
    if lives is False:
        return "its command is gone"
    return "its time is over" if lives is None and one.until is not None and one.until <= now else ""
