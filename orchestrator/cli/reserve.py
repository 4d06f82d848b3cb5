"""`ptq reserve` and `ptq release`: take GPUs through the queue for work by hand, and give them back."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.common import Json
from orchestrator.cli.complete import complete_reservations
from orchestrator.cli.holding import (
    brief,
    card_environment,
    get,
    holding,
    refuse_released,
    slots_of,
    take_out,
    wait_for,
)
from orchestrator.cli.output import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.registry.reservations import Reservation
    from orchestrator.registry.storage.engine import Registry

CPU_SLOTS = "start `ptq worker --cpu-slots N` for CPU slots"
SCRIPTS = (".py", ".sh", ".ipynb")


def register(app: typer.Typer) -> None:
    app.command("reserve")(reserve)
    app.command("release")(release)


def reserve(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- COMMAND...]", help="run this with the GPUs and give them back at its end, however it ends"
        ),
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", metavar="N", min=1, help="how many GPUs (or CPU slots)")] = 1,
    duration: Annotated[
        str, typer.Option("--for", metavar="TIME", help="for how long: 30m, 2h, 1d; with COMMAND only to plan with")
    ] = "30m",
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="what for; everybody sees it")] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="wait here until they are yours")] = True,
    as_json: Json = False,
) -> None:
    """Take GPUs for work by hand: they stand in line as a job does, and nobody's job is started on them.

    Prints the line that makes your shell use them: eval "$(ptq reserve --gpus 1 --for 2h)". Or runs a command with
    them: ptq reserve --gpus 1 -- python notebook.py.
    """
    from orchestrator.cli.common import open_registry

    seconds = _seconds(duration)
    if command:
        _check_command(command, wait=wait, as_json=as_json)
        registry = open_registry(create=True)
        note = note or brief(_what_runs(command))
        with holding(registry, gpus, seconds=seconds, note=note, otherwise=CPU_SLOTS) as names:
            code = _run(command, card_environment(names))
        raise typer.Exit(code)
    registry = open_registry(create=True)
    found = _ask(registry, gpus, seconds, note, wait=wait)
    if as_json:
        render.print_json(_as_json(registry, found))
    elif found.started_at is None:
        render.say(f"reservation r{found.id}")
        render.note(f"it waits in line; `ptq status` shows it, `ptq release r{found.id}` takes it out")
    else:
        _tell(registry, found)


def release(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RESERVATION...", help="as r3; see `ptq status`", autocompletion=complete_reservations),
    ],
) -> None:
    """Give reserved GPUs back, or leave the line."""
    from orchestrator.cli.common import open_registry
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


def _ask(registry: Registry, gpus: int, seconds: float, note: str, *, wait: bool) -> Reservation:
    """The reservation, with `wait` as soon as it has its slots. Raises NotFound where somebody has released it."""
    from orchestrator.dispatch.signals import ended_by
    from orchestrator.dispatch.submit import check_possible
    from orchestrator.registry import reservations

    user = registry.settings.user
    check_possible(registry, gpus, user=user, now=time.time())
    asked: list[int] = []  # a flag, not an exception: between the entry and the wait it would leave the entry behind
    with ended_by(asked.append, (signal.SIGHUP, signal.SIGINT, signal.SIGTERM) if wait else ()):
        with registry.write() as conn:
            number = reservations.add(
                conn, user=user, uid=registry.settings.uid, slots=gpus, seconds=seconds, note=note, at=time.time()
            )  # fmt: skip
        found = wait_for(registry, number, asked) if wait else get(registry, number)
    if asked:  # just when the slots came
        take_out(registry, number)
        sys.exit(128 + asked[0])
    if wait:
        refuse_released(found)
    return found


def _check_command(command: Sequence[str], *, wait: bool, as_json: bool) -> None:
    from orchestrator.errors import BadInput, NotFound

    if as_json or not wait:
        raise BadInput("a command waits for its GPUs and writes its own output", hint="leave --json and --no-wait out")
    if shutil.which(command[0]) is None:
        raise NotFound(f"there is no command {command[0]!r}")


def _what_runs(command: Sequence[str]) -> str:
    """The program and its script, by their names alone: everybody sees the note, and arguments may hold secrets."""
    scripts = [one for one in command[1:] if one.endswith(SCRIPTS) and not one.startswith("-")]
    return " ".join(Path(one).name for one in (command[0], *scripts[:1]))


def _run(command: Sequence[str], cards: dict[str, str]) -> int:
    """Its exit code. Ctrl-C reaches it as it does us; other ends are handed on to it, and it is waited for."""
    from orchestrator.dispatch.signals import ended_by
    from orchestrator.settings import child_environment

    def nothing(_number: int) -> None: ...

    with ended_by(nothing, (signal.SIGINT,)):
        process = subprocess.Popen(command, env=child_environment(**cards))
        with ended_by(process.send_signal, (signal.SIGHUP, signal.SIGTERM)):
            code = process.wait()
    return code if code >= 0 else 128 - code


def _tell(registry: Registry, one: Reservation) -> None:
    from orchestrator.cli.output.views import clock

    names = slots_of(registry, one)
    render.note(f"reservation r{one.id}: {', '.join(names)} until {clock(one.until)}; `ptq release r{one.id}` ends it")
    if cards := card_environment(names):
        render.say("export " + " ".join(f"{name}={value}" for name, value in cards.items()))


def _as_json(registry: Registry, one: Reservation) -> dict[str, Any]:
    return {**vars(one), "until": one.until, "holds": slots_of(registry, one) if one.ended_at is None else []}


def _number(name: str) -> int:
    from orchestrator.errors import NotFound

    match = re.fullmatch(r"r([1-9][0-9]{0,17})", name)
    if match is None:
        raise NotFound(f"there is no reservation {name!r}", hint="`ptq status` shows those that there are, as r3")
    return int(match[1])
