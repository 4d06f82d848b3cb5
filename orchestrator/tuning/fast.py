"""What a step leaves out or does at once. Each can be turned off, to measure what it is worth."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fast:
    """None of these changes a result beyond rounding; docs/results/bench.md says what each is worth."""

    labels: bool = True  #: the vocabulary matrix at label positions only
    trim: bool = True  #: causal bases: nothing behind a row's last label
    pack: bool = True  #: no padding outside attention, and rows of like length together inside it
    share: bool = True  #: causal bases: what all rows of a prompt begin with is computed once; needs `pack`
    once: bool = True  #: and asks once in attention, not again for each row; needs `share`
    varlen: bool = True  #: on a GPU attention over rows of unlike lengths in one call; needs `pack`
    buckets: bool = True  #: where rows must be padded: those of unlike lengths in forwards of their own
    activation: bool = True  #: GPT-2's GELU in one operation; read when a base is loaded
    together: bool = True  #: one optimizer step for all jobs of a run
