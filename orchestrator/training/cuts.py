"""Who cuts a text says so, whoever asked for it: nothing is shortened without a word."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

What = Literal["input", "target"]

#: Whose row it is that is being made; None: nobody counts.
_NOTED: ContextVar[set[What] | None] = ContextVar("noted", default=None)


@contextmanager
def noted() -> Iterator[set[What]]:
    """What is cut inside."""
    found: set[What] = set()
    token = _NOTED.set(found)
    try:
        yield found
    finally:
        _NOTED.reset(token)


def note(what: What) -> None:
    """A text has lost its end."""
    found = _NOTED.get()
    if found is not None:
        found.add(what)


class Cuts:
    """Which of a job's training rows this program has read, and which of them were cut."""

    _READ: int = 1
    _BITS: dict[What, int] = {"input": 2, "target": 4}  # noqa: RUF012 - never changed

    def __init__(self, rows: int, origin: Callable[[int], int]) -> None:
        """`origin`: the number of the row that a row was repeated from (under each pattern, for each answer)."""
        self._rows, self._origin = bytearray(rows), origin
        self._unread = rows
        self.told = False

    @property
    def whole(self) -> bool:
        """Every row was read."""
        return self._unread == 0

    def read(self, number: int, cut: set[What]) -> None:
        self._unread -= not self._rows[number]
        self._rows[number] |= self._READ | sum(self._BITS[what] for what in cut)

    def message(self) -> str | None:
        """For a person; None where nothing was cut."""
        inputs, targets = (self._having(bit) for bit in self._BITS.values())
        if not inputs and not targets:
            return None
        told = []
        if inputs:
            told.append(f"{inputs:,} are longer than task.max_input_tokens or the base's context, and lose their ends")
        if targets:
            told.append(f"{targets:,} have targets longer than task.max_new_tokens, and are learned without an end")
        return f"of {self._having(self._READ):,} training rows that were read, {'; '.join(told)}"

    def _having(self, bit: int) -> int:
        return len({self._origin(number) for number, row in enumerate(self._rows) if row & bit})
