"""The box as the scheduler sees it: what there is to give away, and what runs on it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from orchestrator.cost import Cost, Load
from orchestrator.dispatch.scheduling.admission import Limits


@dataclass(frozen=True)
class Slot:
    name: str  #: cpu:<n> or gpu:<uuid>
    taken_by: str = ""  #: who uses it outside the queue; empty: nobody
    fault: str = ""  #: why nobody may use it; empty: it is sound

    @property
    def usable(self) -> bool:
        return not self.taken_by and not self.fault


@dataclass(frozen=True)
class Host:
    """A run under way, or a reservation."""

    run: int
    slots: tuple[str, ...] = ()
    jobs: tuple[int, ...] = ()  #: that are in it; none: its base is kept warm, or it is just ending
    key: str | None = None  #: jobs with this key may join; None: nobody may
    loads: tuple[Load, ...] = ()  #: what its jobs bring to a step, estimated
    cost: Cost | None = None  #: of its steps, where that has been measured
    steps: int = 0  #: that it has still to do, as far as is known
    limits: Limits = field(default_factory=Limits)
    users: tuple[str, ...] = ()  #: of its jobs, one entry each
    groups: tuple[int, ...] = ()  #: of its jobs that have one
    priority: int = 0  #: the highest of its jobs
    started_at: float = math.inf
    ends_at: float | None = None  #: by its jobs' time limits, at the latest
    expected: float | None = None  #: its end, by its pace
    ending: bool = False  #: it has been asked to end
    reservation: int | None = None  #: it holds slots for a person, and no job

    @property
    def warm(self) -> bool:
        """Without a job, ready for the next: it leaves when asked."""
        return not self.jobs and self.key is not None
