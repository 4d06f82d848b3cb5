"""A job's numbers in TensorBoard, MLflow or W&B too, through accelerate's trackers.

`events.jsonl` is what counts; a tracker holds a copy. Every job of a run has runs of its own there, and a thread of its
own for each tracker: MLflow knows its active run by thread, and no step waits for anybody's server. What a tracker
cannot do is said once, as a warning; the job goes on without it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.events import KINDS, LAST_WORDS, EventWriter, events_of
from orchestrator.jobspec import JobSpec
from orchestrator.paths import JobPaths
from orchestrator.settings import without_secrets
from orchestrator.training.trackers import OPEN

#: Numbers that may wait for a tracker: some 20 MB. One that falls further behind is given up.
_MOST_WAITING = 50_000
#: Seconds for which the last words of a run's jobs, all together, wait for their trackers: nobody has to be killed
#: because somebody's server is slow. And the end of the run, for those that close.
_PATIENCE, LAST_PATIENCE = 5.0, 10.0
_LONGEST_REASON = 300
_BEHIND = f"cannot keep up: {_MOST_WAITING:,} numbers wait"


class Point(NamedTuple):
    step: int
    values: dict[str, float]  #: `split/name` -> number


class Patience:
    """What is left of a run's."""

    def __init__(self) -> None:
        self.seconds = _PATIENCE


class TrackedEvents:
    """Writes events, and hands their numbers on."""

    def __init__(self, events: EventWriter, spec: JobSpec, patience: Patience) -> None:
        self._events, self._patience = events, patience
        self._copying = [_Copying(name, spec) for name in spec.recipe["tracking"]]
        self._step = 0

    def write(self, kind: str, **fields: Any) -> None:
        if kind in LAST_WORDS:
            self._settle()
        self._events.write(kind, **fields)
        if kind == "started":
            for copying in self._copying:
                copying.begin(int(fields["resumed_from"]))
        point = point_of({"kind": kind, **fields}, self._step)
        if point is not None:
            self._step = point.step
            for copying in self._copying:
                copying.take(point)

    def flush(self, *, sync: bool = False) -> None:
        self._warn()
        self._events.flush(sync=sync)

    def close(self) -> None:
        """Nothing more comes; the trackers end in their own time (`wait_for`)."""
        for copying in self._copying:
            copying.end()
        self._events.close()

    def wait_for(self, deadline: float) -> list[str]:
        """Trackers that are not done at `deadline` (of time.monotonic), or that failed as they ended."""
        return [f"{one.tracker}: {one.fault or 'is not done'}" for one in self._copying if not one.over(deadline)]

    def _settle(self) -> None:
        start = time.monotonic()
        late = [one.tracker for one in self._copying if not one.settled(start + self._patience.seconds)]
        self._patience.seconds = max(0.0, self._patience.seconds - (time.monotonic() - start))
        self._warn()
        for tracker in late:
            what = "has not taken the last numbers yet; it has until the end of the run"
            self._events.write("warning", message=f"{tracker}: {what}")

    def _warn(self) -> None:
        for copying in self._copying:
            if copying.fault and not copying.told:
                copying.told = True
                self._events.write("warning", message=f"{copying.tracker}: {copying.fault}; the job goes on without it")


def point_of(event: Mapping[str, Any], step: int) -> Point | None:
    """What a tracker is told of an event. The untuned base's scores stand at the step that is reached (`step`)."""
    if event["kind"] not in {"metric", "baseline"}:
        return None
    prefix = "" if event["kind"] == "metric" else "baseline/"
    values = {f"{prefix}{event['split']}/{name}": v for name, v in event["values"].items() if v is not None}
    return Point(int(event.get("step", step)), values) if values else None


class _Copying:
    """One tracker of one job, in a thread of its own."""

    def __init__(self, tracker: str, spec: JobSpec) -> None:
        self.tracker, self._spec = tracker, spec
        self.fault = ""
        self.told = False
        self._waiting: queue.Queue[Point | threading.Event | None] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None

    def begin(self, resumed_from: int) -> None:
        # A daemon: a tracker that hangs does not keep the program.
        self._thread = threading.Thread(target=self._work, args=[resumed_from], name=self.tracker, daemon=True)
        self._thread.start()

    def take(self, point: Point) -> None:
        if self.fault:
            return
        try:
            self._waiting.put_nowait(point)
        except queue.Full:
            self.fault = _BEHIND

    def settled(self, deadline: float) -> bool:
        """Whether all that was handed over has been taken by then, or never will be."""
        if self.fault or self._thread is None:
            return True
        reached = threading.Event()
        self._mark(reached)
        while not reached.wait(0.02) and self._thread.is_alive():
            if time.monotonic() > deadline:
                return False
        return True

    def end(self) -> None:
        self._mark(None)

    def over(self, deadline: float) -> bool:
        if self._thread is None:
            return True
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive() and not (self.fault and not self.told)

    def _mark(self, marker: threading.Event | None) -> None:
        try:
            self._waiting.put_nowait(marker)
        except queue.Full:
            self.fault = _BEHIND

    def _work(self, resumed_from: int) -> None:
        try:
            copies = OPEN[self.tracker](self._spec)
            earlier = earlier_points(self._spec, resumed_from)
            if copies.replays:
                copies.log(earlier)
            known = {(point.step, name) for point in earlier if point.step == resumed_from for name in point.values}
            for batch in self._batches():
                copies.log([point for point in batch if not known or _is_new(point, known)])
            copies.finish()
        except BaseException as error:  # SystemExit too: W&B's way to say that a login is missing
            text = str(error).strip() or type(error).__name__
            self.fault = without_secrets(text.splitlines()[0])[:_LONGEST_REASON]

    def _batches(self) -> Iterator[list[Point]]:
        """All that waits, each time; until the end."""
        while True:
            found = [self._waiting.get()]
            while found[-1] is not None and not self._waiting.empty():
                found.append(self._waiting.get())
            yield [one for one in found if isinstance(one, Point)]
            for marker in found:
                if isinstance(marker, threading.Event):
                    marker.set()
            if found[-1] is None:
                return


def earlier_points(spec: JobSpec, resumed_from: int) -> list[Point]:
    """What earlier attempts have reported up to the step from which this one goes on, each once and in order."""
    if resumed_from == 0:
        return []
    found: dict[int, dict[str, float]] = {}
    for event in events_of(JobPaths(Path(spec.folder)).events, KINDS):
        point = point_of(event, resumed_from) if event["attempt"] < spec.attempt else None
        if point is not None and point.step <= resumed_from:
            found.setdefault(point.step, {}).update(point.values)
    return [Point(step, found[step]) for step in sorted(found)]


def _is_new(point: Point, known: set[tuple[int, str]]) -> bool:
    return not all((point.step, name) in known for name in point.values)


def wait_for(tracked: Sequence[TrackedEvents]) -> None:
    """At the end of the run; what is not done then is left, and said in its log."""
    deadline = time.monotonic() + LAST_PATIENCE
    for one in tracked:
        for fault in one.wait_for(deadline):
            print(f"tracking with {fault}", flush=True)
