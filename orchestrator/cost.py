"""What a step of several jobs costs on one base: seconds and bytes, from figures that were measured there.

The training program measures (`training.calibrate`) and leaves one file for each base, precision and kind of device;
whoever places jobs reads it. Nothing here measures, and nothing here decides.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.paths import read_json, write_json

FORMAT = 1


@dataclass(frozen=True)
class Load:
    """What one job adds to a step, on each process."""

    rows: int = 1  #: in a forward
    row_tokens: int = 1  #: of a usual row, virtual ones included
    row_labels: int = 1  #: positions of a row whose logits are computed
    passes: int = 1  #: forwards a step
    parameters: int = 0  #: numbers that it trains

    @property
    def tokens(self) -> int:
        """In a forward."""
        return self.rows * self.row_tokens


@dataclass(frozen=True)
class Cost:
    """Measured figures of one base on one kind of device."""

    curve: tuple[tuple[float, float], ...]  #: (tokens of a forward, seconds of forward and backward), both rising
    job_seconds: float  #: for each job: its prompt, its loss, its optimizer's step
    label_seconds: float  #: for each position with a label
    padding_seconds: float  #: for each position that only fills a row up to the longest; 0 where none is computed
    weight_bytes: float
    token_bytes: float  #: kept for the backward
    label_bytes: float
    capacity_bytes: float  #: of the device, or of a process's share of the machine
    parameter_bytes: float = 16.0  #: value, gradient and two moments in fp32

    def seconds(self, loads: Sequence[Load]) -> float:
        """Of one step of all these jobs together."""
        passes = max((load.passes for load in loads), default=0)
        forwards = [[load for load in loads if load.passes > number] for number in range(passes)]
        return self.job_seconds * len(loads) + sum(self._forward(together) for together in forwards)

    def bytes(self, loads: Sequence[Load]) -> float:
        """At the peak of such a step."""
        tokens = sum(load.tokens for load in loads)
        if self.padding_seconds > 0:
            tokens = sum(load.rows for load in loads) * max((load.row_tokens for load in loads), default=0)
        kept = self.token_bytes * tokens + self.label_bytes * _labels(loads)
        return self.weight_bytes + kept + self.parameter_bytes * sum(load.parameters for load in loads)

    def gain(self, present: Sequence[Load], new: Load) -> float:
        """Seconds of separate steps for each second of a common one: above 1, `new` had better share."""
        return (self.seconds(present) + self.seconds([new])) / self.seconds([*present, new])

    def slowdown(self, loads: Sequence[Load]) -> float:
        """How many times as long a step of all takes as one of the job that loses most."""
        return self.seconds(loads) / min(self.seconds([load]) for load in loads)

    def faster(self, other: Cost | None) -> Cost:
        """Of two measurements of the same: a disturbed one is slower. `other` may not be there."""
        probe = [Load(rows, 64) for rows in (1, 4, 16)]
        theirs = None if other is None else sum(other.seconds([load]) for load in probe)
        return self if other is None or theirs is None or theirs >= sum(self.seconds([one]) for one in probe) else other

    def write(self, path: Path, about: dict[str, object]) -> None:
        """`about`: what was measured, for people."""
        write_json(path, {"format": FORMAT, "about": about, **asdict(self)})

    @classmethod
    def read(cls, path: Path) -> Cost | None:
        """None where nothing has been measured, or by another version."""
        try:
            raw = read_json(path)
            if raw.pop("format") != FORMAT:
                return None
            raw.pop("about")
            curve = tuple((float(tokens), float(seconds)) for tokens, seconds in raw.pop("curve"))
            return cls(curve, **raw) if curve else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _forward(self, loads: Sequence[Load]) -> float:
        tokens = sum(load.tokens for load in loads)
        padded = sum(load.rows for load in loads) * max(load.row_tokens for load in loads)
        return self._base(tokens) + self.label_seconds * _labels(loads) + self.padding_seconds * (padded - tokens)

    def _base(self, tokens: float) -> float:
        """By the curve: as measured between its points, along its last piece beyond them."""
        (first, least), *_ = self.curve
        if tokens <= first or len(self.curve) == 1:
            return least
        above = min(bisect_left(self.curve, (tokens, 0.0)), len(self.curve) - 1)
        (t0, s0), (t1, s1) = self.curve[above - 1], self.curve[above]
        return s0 + (s1 - s0) * (tokens - t0) / (t1 - t0)


def _labels(loads: Sequence[Load]) -> int:
    return sum(load.rows * load.row_labels for load in loads)
