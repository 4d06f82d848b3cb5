"""Whether a job may join others in a run: while it pays, while nobody is slowed too much, while memory lasts.

A pure function of measured figures (`cost.Cost`) and estimates of what jobs bring (`cost.Load`). Where nothing has been
measured yet, numbers of tokens stand for all of it; a run that takes on too much then halves its forwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.cost import Cost, Load

#: A gain of 2 % is within what two measurements of the same step differ by.
LEAST_GAIN = 1.02
#: Of the memory; the rest is for what is not kept: an operator's own space, fragments.
USABLE = 0.8
#: What a step costs however small it is, in tokens, where nothing has been measured.
FIXED_TOKENS = 1024
#: Sharing that costs nobody more than this leaves a free slot to somebody else.
NEARLY_FREE = 1.25


@dataclass(frozen=True)
class Limits:
    """How full a worker fills its runs."""

    jobs: int = 16
    tokens: int = 65_536  #: a forward, estimated, where nothing is measured
    fill: int = 16_384  #: where nothing is measured: from here on a free slot is the better place for a job
    slowdown: float = 8.0  #: no step takes more than so many times as long as the job's own
    gain: float = LEAST_GAIN  #: separate steps take at least so many times as long as the common one
    slots_first: bool = False  #: a free slot is always the better place


def default_limits(device: str) -> Limits:
    """On a CPU every slot is a share of the cores: a free one is always the better place."""
    return Limits() if device == "cuda" else Limits(slots_first=True)


def refusal(cost: Cost | None, limits: Limits, present: Sequence[Load], new: Load) -> str | None:
    """Why `new` may not share a run with `present`, for a person; None: it may.

    An empty run takes any job: one that is too large to share may still run.
    """
    if not present:
        return None
    together = [*present, new]
    if len(together) > limits.jobs:
        return f"it has {_jobs(len(present))}, and takes at most {limits.jobs}"
    if cost is None:
        if (tokens := sum(load.tokens for load in together)) > limits.tokens:
            return f"a step would have about {tokens} tokens, more than {limits.tokens}"
        slowdown = (FIXED_TOKENS + tokens) / (FIXED_TOKENS + min(load.tokens for load in together))
        return _too_slow(slowdown, limits)
    if (needed := cost.bytes(together)) > USABLE * cost.capacity_bytes:
        return f"a step would need {_size(needed)} of {_size(USABLE * cost.capacity_bytes)} of memory"
    if (slow := _too_slow(cost.slowdown(together), limits)) is not None:
        return slow
    if (gain := cost.gain(present, new)) < limits.gain:
        return f"it would not pay: separate steps take {gain:.2f} times as long as a common one"
    return None


def leaves_a_slot_free(cost: Cost | None, limits: Limits, present: Sequence[Load], new: Load) -> bool:
    """Whether `new` had better share than take a slot of its own."""
    if not present:
        return True  # a warm base
    if limits.slots_first:
        return False
    together = [*present, new]
    if cost is None:
        return sum(load.tokens for load in together) <= limits.fill
    return cost.slowdown(together) <= NEARLY_FREE


def _too_slow(slowdown: float, limits: Limits) -> str | None:
    if slowdown <= limits.slowdown:
        return None
    return f"a step would take {slowdown:.1f} times as long as alone, more than {limits.slowdown:g}"


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
