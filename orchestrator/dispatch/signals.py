"""Signals that ask a process of ours to leave."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def ended_by(leave: Callable[[int], None], numbers: Sequence[int] = (signal.SIGINT, signal.SIGTERM)) -> Iterator[None]:
    """Inside, these signals call `leave` with their number; what is ignored (`nohup`) stays ignored."""
    before = {number: signal.getsignal(number) for number in numbers}
    ours = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in ours:
        signal.signal(number, lambda got, _frame: leave(got))
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
