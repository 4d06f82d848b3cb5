"""`ptq init`: make the registry."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.common import Json
from orchestrator.cli.output.render import print_json, say

if TYPE_CHECKING:
    from orchestrator.registry.storage.engine import Migrated
    from orchestrator.settings import Settings


def register(app: typer.Typer) -> None:
    """Add `ptq init`."""
    app.command("init")(init)


def init(
    migrate: Annotated[
        bool, typer.Option("--migrate", help="Bring the registry of an older ptq up to date; stop the worker first.")
    ] = False,
    group: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Share the home with this group of accounts; you are the one who works."),
    ] = None,
    json: Json = False,
) -> None:
    """Make the registry in PTQ_HOME (default: the current folder, or the parent folder that holds one)."""
    from orchestrator.registry.storage import engine
    from orchestrator.registry.storage.migrations import HEAD
    from orchestrator.settings import load_settings

    settings = load_settings()
    migrated = _migrate(settings) if migrate else None
    before, backup = (migrated.before, migrated.backup) if migrated else (None, None)
    registry = engine.Registry.open(settings, create=True)
    made = registry.create()
    if group is not None:
        _share(settings.home, group)
    if json:
        print_json(
            {"home": str(settings.home), "registry": registry.where, "schema": HEAD, "made": made}
            | {"backup": None if backup is None else str(backup)}
        )
    elif made:
        say(f"{registry.where}: made")
    elif before in (None, HEAD):
        say(f"{registry.where}: was there already")
    else:
        say(f"{registry.where}: brought from schema {before} to {HEAD}")
        say(f"  as it was before: {backup}")
    if group is not None and not json:
        say(f"{settings.home}: shared by the group {group}")


def _migrate(settings: Settings) -> Migrated:
    """Not under a worker: it would go on with the schema and the names that it knows."""
    from orchestrator.dispatch.lock import WorkerPresent, holder, worker_lock
    from orchestrator.paths import HomePaths
    from orchestrator.registry.storage import engine

    lock = HomePaths(settings.home).worker_lock
    try:
        return engine.migrate(settings, now=time.time(), alone=worker_lock(lock))
    except WorkerPresent as error:
        hint = f"stop it first: `kill {holder(lock) or 'PID'}`; its runs go on, and the next worker takes them over"
        raise WorkerPresent(error.message, where=error.where, hint=hint) from None


def _share(home: Path, group: str) -> None:
    import grp

    from orchestrator import sharing
    from orchestrator.errors import BadInput, NotAllowed

    try:
        sharing.share(home, grp.getgrnam(group).gr_gid)
    except KeyError:
        raise BadInput(f"there is no group {group!r}", where="--group", hint=f"`sudo groupadd {group}`") from None
    except PermissionError as error:
        raise NotAllowed(
            f"you may not give {error.filename} to the group {group}",
            hint=f"only its owner may, as a member of the group (see `id`; `sudo usermod -aG {group} $USER`), or root",
        ) from None
