"""`ptq reserve` and `ptq release`: take GPUs through the queue for work by hand, and give them back."""

from __future__ import annotations

import re
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.complete import complete_reservations
from orchestrator.cli.output import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.registry.reservations import Reservation
    from orchestrator.registry.storage.engine import Registry

POLL = 0.3


def register(app: typer.Typer) -> None:
    app.command("reserve")(reserve)
    app.command("release")(release)


def reserve(
    gpus: Annotated[int, typer.Option("--gpus", metavar="N", min=1, help="how many GPUs (or CPU slots)")] = 1,
    duration: Annotated[str, typer.Option("--for", metavar="TIME", help="for how long: 30m, 2h, 1d")] = "30m",
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="what for; everybody sees it")] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="wait here until they are yours")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable, on stdout")] = False,
) -> None:
    """Take GPUs for work by hand: they stand in line as a job does, and nobody's job is started on them.

    Prints the line that makes your shell use them: eval "$(ptq reserve --gpus 1 --for 2h)".
    """
    from orchestrator.cli.output.views import open_registry
    from orchestrator.dispatch.signals import ended_by
    from orchestrator.dispatch.submit import check_possible
    from orchestrator.registry import reservations

    seconds = _seconds(duration)
    registry = open_registry(create=True)
    user = registry.settings.user
    check_possible(registry, gpus, user=user, now=time.time())
    asked: list[int] = []  # a flag, not an exception: between the entry and the wait it would leave the entry behind
    with ended_by(asked.append, (signal.SIGHUP, signal.SIGINT, signal.SIGTERM) if wait else ()):
        with registry.write() as conn:
            number = reservations.add(
                conn, user=user, uid=registry.settings.uid, slots=gpus, seconds=seconds, note=note, at=time.time()
            )  # fmt: skip
        found = _wait(registry, number, asked) if wait else _get(registry, number)
    if asked:  # just when the slots came
        _take_out(registry, number)
        sys.exit(128 + asked[0])
    if as_json:
        render.print_json(_as_json(registry, found))
    elif found.started_at is None:
        render.say(f"reservation r{number}")
        render.note(f"it waits in line; `ptq status` shows it, `ptq release r{number}` takes it out")
    else:
        _tell(registry, found)


def release(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RESERVATION...", help="as r3; see `ptq status`", autocompletion=complete_reservations),
    ],
) -> None:
    """Give reserved GPUs back, or leave the line."""
    from orchestrator.cli.output.views import open_registry
    from orchestrator.dispatch.control import release as release_all

    registry = open_registry()
    numbers = [_number(name) for name in names]
    ended = release_all(registry, numbers, user=registry.settings.user, now=time.time())
    for number in numbers:
        if number in ended:
            render.say(f"reservation r{number} released")
        else:
            render.note(f"reservation r{number} was over already")


def _seconds(duration: str) -> float:
    from orchestrator.errors import BadInput
    from orchestrator.settings import parse_duration

    try:
        seconds = parse_duration(duration)
    except ValueError as error:
        raise BadInput(f"{duration!r}: {error}", where="--for") from None
    if seconds <= 0:
        raise BadInput(f"{duration!r}: no time at all", where="--for", hint="write for example 30m")
    return seconds


def _wait(registry: Registry, number: int, asked: Sequence[int]) -> Reservation:
    """Until it has its slots. Ctrl-C and every other end leave the line: nobody would be there to use them."""
    from orchestrator.cli.output.views import NO_WORKER, worker_is_here

    try:
        if not worker_is_here(registry):
            render.note(NO_WORKER)
        with render.progress(f"reservation r{number}") as advance:
            while True:
                if asked:
                    sys.exit(128 + asked[0])
                found = _get(registry, number)
                if found.started_at is not None or found.ended_at is not None:
                    return found
                advance(0, None, "waits in line; Ctrl-C leaves it")
                time.sleep(POLL)
    except BaseException:
        _take_out(registry, number)
        raise


def _take_out(registry: Registry, number: int) -> None:
    from orchestrator.dispatch.control import release as release_all

    release_all(registry, [number], user=registry.settings.user, now=time.time())
    with suppress(OSError):  # the terminal may be gone
        render.note(f"reservation r{number} released")


def _tell(registry: Registry, one: Reservation) -> None:
    from orchestrator.cli.output.views import clock
    from orchestrator.errors import NotFound

    if one.ended_at is not None:
        raise NotFound(f"reservation r{one.id} was released before it had its GPUs")
    names = _slots(registry, one)
    render.note(f"reservation r{one.id}: {', '.join(names)} until {clock(one.until)}; `ptq release r{one.id}` ends it")
    uuids = [name.removeprefix("gpu:") for name in names if name.startswith("gpu:")]
    if uuids:
        render.say(f"export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={','.join(uuids)}")


def _as_json(registry: Registry, one: Reservation) -> dict[str, Any]:
    return {**vars(one), "until": one.until, "holds": _slots(registry, one) if one.ended_at is None else []}


def _slots(registry: Registry, one: Reservation) -> list[str]:
    from orchestrator.registry import reservations

    with registry.read() as conn:
        return reservations.slots_of(conn, one)


def _get(registry: Registry, number: int) -> Reservation:
    from orchestrator.registry import reservations

    with registry.read() as conn:
        return reservations.get(conn, number)


def _number(name: str) -> int:
    from orchestrator.errors import NotFound

    match = re.fullmatch(r"r([1-9][0-9]{0,17})", name)
    if match is None:
        raise NotFound(f"there is no reservation {name!r}", hint="`ptq status` shows those that there are, as r3")
    return int(match[1])
