"""A program's first look at its cards: they must be those that the worker has leased for it, and torch must see them.

CUDA_VISIBLE_DEVICES with UUIDs should see to that. A launcher that rewrites it, a container that hides cards, or a
driver that numbers them anew would put two jobs on one card, and nobody would notice until memory runs out.

    python -m orchestrator.training.cards       what torch sees, as JSON: for `ptq doctor`
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

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
            hint="CUDA_VISIBLE_DEVICES must reach the ranks as the worker sets it" if found else why_none(),
        )


def check_a_card(leased: Sequence[str]) -> None:
    """The same, where nothing was leased any card will do: CUDA_VISIBLE_DEVICES has chosen it."""
    check_cards(leased)
    if not visible():
        raise WrongCards("torch sees no GPU", hint=why_none())


def visible() -> list[str]:
    """UUIDs of torch's devices, in its order."""
    return [str(torch.cuda.get_device_properties(number).uuid) for number in range(torch.cuda.device_count())]


def seen() -> dict[str, Any]:
    """`torch`: its version; `built_for`: of CUDA, None without; `gpus`: UUIDs; `why_none`: where it sees none."""
    found = visible()
    facts = {"torch": torch.__version__, "built_for": torch.version.cuda, "gpus": found}
    return facts | {"why_none": "" if found else why_none()}


def why_none() -> str:
    """Why torch sees no GPU, and what to do."""
    how = "docs/howto/gpus.md says how to install another"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA; {how}"
    build = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
    fault = _cuda_fault()
    if "driver" in fault.lower():
        return f"{build}, and the driver does not run that ({fault}): a newer driver, or an older build; {how}"
    return f"{build}; {fault or 'CUDA_VISIBLE_DEVICES or a container hides the cards'}"


def _cuda_fault() -> str:
    """What CUDA says when it is started: the first sentence, which names the driver where that is too old."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            return re.split(r"(?<=[a-z0-9)])\. |\n", str(error), maxsplit=1)[0]
    return ""


def _plain(uuid: str) -> str:
    """NVML writes `GPU-…`, torch the same without it."""
    return uuid.removeprefix("GPU-").lower()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(seen()) + "\n")
