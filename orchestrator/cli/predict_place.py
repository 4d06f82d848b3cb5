"""Where `ptq predict` computes: on the CPU, on a card that this shell was granted, or on a free one of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.cli.holding import brief, card_environment, holding
from orchestrator.cli.output import render
from orchestrator.cli.programs import NO_CARDS

if TYPE_CHECKING:
    from orchestrator.registry.storage.engine import Registry

PLANNED = 600.0  #: seconds that the queue reckons with; a prediction that takes longer keeps its card

ON_THE_CPU = "leave --gpu out, and it runs on the CPU"


@dataclass(frozen=True)
class Place:
    device: str = "cpu"  #: cpu or cuda
    gpus: list[str] = field(default_factory=list)  #: UUIDs that the program must find; empty: whatever it is shown
    cards: Mapping[str, str] = field(default_factory=lambda: NO_CARDS)  #: of its environment


@contextmanager
def place(registry: Registry, *, gpu: bool | None, note: str) -> Iterator[Place]:
    """`gpu`: what was asked for; None: nothing."""
    from orchestrator.dispatch.hold import check_granted
    from orchestrator.errors import BadInput

    visible = registry.settings.visible_gpus
    if gpu is False or (gpu is None and not visible):
        _say_how_to_use_a_card(registry)
        yield Place()
    elif visible is None:
        with holding(registry, 1, seconds=PLANNED, note=brief(note), otherwise=ON_THE_CPU, cards=True) as names:
            yield _on(names)
    elif not visible:
        hint = "unset it and a free card is reserved, or leave --gpu out"
        raise BadInput("it hides all GPUs", where="CUDA_VISIBLE_DEVICES", hint=hint)
    else:
        slot = check_granted(registry, visible)
        render.note(f"on GPU {visible[0]}, which CUDA_VISIBLE_DEVICES names; `--cpu` leaves it alone")
        # By its UUID: CUDA, left to itself, counts the fastest card first, and 0 would be another than was looked at.
        yield Place("cuda", cards={}) if slot is None else _on([slot])


def _on(slots: Sequence[str]) -> Place:
    return Place("cuda", [name.removeprefix("gpu:") for name in slots], card_environment(slots))


def _say_how_to_use_a_card(registry: Registry) -> None:
    """On a box that has one."""
    from orchestrator.dispatch.scheduling.gpus import NoGpu, gpu_source

    try:
        gpu_source(registry.settings).look()
    except NoGpu:
        return
    threads = registry.settings.threads
    how = "`--gpu` reserves a free GPU for as long as this runs, PTQ_THREADS sets the threads"
    render.note(f"on the CPU with {threads} thread{'' if threads == 1 else 's'}: {how}")
