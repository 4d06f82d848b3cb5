"""Slots for people: reservations get what the plan gives them, and end when their time is over."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from orchestrator.dispatch.running import processes
from orchestrator.registry import reservations
from orchestrator.registry.runs import Claimant
from orchestrator.registry.storage.engine import Registry


@dataclass
class Reservations:
    registry: Registry
    me: Claimant
    check_still_free: Callable[[Collection[str]], None]
    log: Callable[[str], None]
    clock: Callable[[], float]
    hold_slots: bool = False  #: at the last look

    def start(self, number: int, names: tuple[str, ...]) -> None:
        with self.registry.write() as conn:
            self.check_still_free(names)
            if not reservations.start(conn, number, names, self.me, at=self.clock()):
                return
        self.log(f"reservation r{number}: has {', '.join(names)}")

    def end_those_that_are_over(self, *, half_life: float) -> None:
        now = self.clock()
        with self.registry.read() as conn:
            holding = [one for one in reservations.unfinished(conn) if one.until is not None]
        over = [one for one in holding if one.until is not None and one.until <= now]
        self.hold_slots = len(holding) > len(over)
        for one in over:
            with self.registry.write() as conn:
                reservations.end(
                    conn, one.id, by="its time is over", at=now, up_since=processes.booted_at(), half_life=half_life
                )  # fmt: skip
            self.log(f"reservation r{one.id} of {one.user} is over")
