"""A run's first look at its cards: they must be those that the worker has leased for it.

CUDA_VISIBLE_DEVICES with UUIDs should see to that. A launcher that rewrites it, a container that hides cards, or a
driver that numbers them anew would put two jobs on one card, and nobody would notice until memory runs out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from orchestrator.errors import PtqError


class WrongCards(PtqError):
    """This run sees other GPUs than were leased for it."""


def check_cards(leased: Sequence[str], seen: Sequence[str] | None = None) -> None:
    """Raise WrongCards unless this process sees just the leased cards, in their order. `seen`: for tests."""
    if not leased:
        return
    found = visible() if seen is None else list(seen)
    if [_plain(uuid) for uuid in found] != [_plain(uuid) for uuid in leased]:
        raise WrongCards(
            f"leased were {', '.join(leased)}; torch sees {', '.join(found) or 'none'}",
            hint="CUDA_VISIBLE_DEVICES must reach the ranks as the worker sets it",
        )


def visible() -> list[str]:
    """UUIDs of torch's devices, in its order."""
    return [str(torch.cuda.get_device_properties(number).uuid) for number in range(torch.cuda.device_count())]


def _plain(uuid: str) -> str:
    """NVML writes `GPU-…`, torch the same without it."""
    return uuid.removeprefix("GPU-").lower()
