"""`events.jsonl`: what a training process tells the ledger, one JSON object a line, append only.

Every line carries `format`, `kind`, `attempt` and `at` (seconds since the epoch, UTC). Kinds and their fields:

    started    {processes, device, resumed_from, steps}  the run has loaded the base and enters the loop at this step
    environment {versions, code, hardware}               what it computes with; follows `started`
    metric     {step, split, values: {name: number}}     split is train, validation or test
    progress   {step, steps, tokens_per_second}
    baseline   {split, values}                           the frozen base, untuned, on the same rows
    sample     {step, split, rows: [{input, target, base, tuned}]}
    checkpoint {step}
    artifact   {folder}                                  complete; its manifest is already on disk
    warning    {message}                             something beside the job's own result went wrong: it goes on
    failed     {reason, message, alone}                  reason is a `states.Reason`; alone: the run goes on without it
    stopped    {step, why}                               left at a step boundary because it was asked to: with the whole
                                                         run (asked), or alone (cancel, preempt)

A reader keeps its byte offset and takes whole lines only: a torn last line is left for later, and a writer that
opens a file ending in a torn line closes that line first, so that readers skip it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

FORMAT = 1

#: kind -> the fields it carries, for the reference page and its test.
KINDS: dict[str, tuple[str, ...]] = {
    "started": ("processes", "device", "resumed_from", "steps"),
    "environment": ("versions", "code", "hardware"),
    "metric": ("step", "split", "values"),
    "progress": ("step", "steps", "tokens_per_second"),
    "baseline": ("split", "values"),
    "sample": ("step", "split", "rows"),
    "checkpoint": ("step",),
    "artifact": ("folder",),
    "warning": ("message",),
    "failed": ("reason", "message", "alone"),
    "stopped": ("step", "why"),
}


#: Kinds of which one ends every attempt.
LAST_WORDS = frozenset({"artifact", "failed", "stopped"})


@dataclass
class EventWriter:
    """Appends events of one attempt. Lines are buffered until `flush`; `flush(sync=True)` reaches the disk."""

    path: Path
    attempt: int
    clock: Callable[[], float] = time.time
    _pending: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: after an error (a full disk) exactly what has not been written is still pending, and a flush is
        # one write, which other writers of the file cannot split.
        self._file = self.path.open("ab", buffering=0)
        if not _ends_in_newline(self.path):
            self._pending += b"\n"

    def write(self, kind: str, **fields: Any) -> None:
        if kind not in KINDS or set(fields) != set(KINDS[kind]):
            raise ValueError(f"event {kind!r} with fields {sorted(fields)} is not one of events.KINDS")
        record = {"format": FORMAT, "kind": kind, "attempt": self.attempt, "at": self.clock(), **fields}
        # Half a character (a lone surrogate) is not UTF-8; it becomes a question mark, for a row's text is only shown.
        self._pending += (json.dumps(record, ensure_ascii=False) + "\n").encode(errors="replace")

    def flush(self, *, sync: bool = False) -> None:
        while self._pending:
            written = self._file.write(self._pending)
            del self._pending[:written]
        if sync:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        try:
            self.flush(sync=True)
        finally:
            self._file.close()

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Events(Protocol):
    """Where a job's events go."""

    def write(self, kind: str, **fields: Any) -> None: ...

    def flush(self, *, sync: bool = False) -> None: ...

    def close(self) -> None: ...


class NoEvents:
    """Takes events and writes none: for every process of a run but the first."""

    def write(self, kind: str, **fields: Any) -> None:
        pass

    def flush(self, *, sync: bool = False) -> None:
        pass

    def close(self) -> None:
        pass


def read_events(path: Path, offset: int = 0, *, most: int | None = None) -> tuple[list[dict[str, Any]], int]:
    """Whole events from byte `offset` on, and the offset to go on from. Lines that are not events are skipped.

    `most`: about so many bytes; the rest is for the next time.
    """
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(-1 if most is None else most)
        data += file.readline()  # the rest of the line in which so many bytes end
    end = data.rfind(b"\n") + 1
    events = [event for line in data[:end].splitlines() if (event := _parse(line)) is not None]
    return events, offset + end


def events_of(path: Path, kinds: Collection[str]) -> Iterator[dict[str, Any]]:
    """The events of these kinds, oldest first, read line by line: of a million steps they are hundreds of megabytes."""
    marks = [f'"{kind}"'.encode() for kind in kinds]
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            if any(mark in line for mark in marks) and line.endswith(b"\n"):
                event = _parse(line)
                if event is not None and event["kind"] in kinds:
                    yield event


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(event, dict) and isinstance(event.get("kind"), str) and event["kind"] in KINDS
    return event if known else None


def _ends_in_newline(path: Path) -> bool:
    """An empty file does."""
    if path.stat().st_size == 0:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
