"""`ptq artifact alias` and `aliases`: names such as sst2@best that point to an artifact and may move."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from orchestrator.cli.common import Json, when
from orchestrator.cli.output.render import note, print_json, say, table
from orchestrator.errors import BadInput


def alias(
    name: Annotated[str, typer.Argument(metavar="NAME@LABEL", help="For example sst2@best.")],
    artifact: Annotated[
        str | None, typer.Argument(metavar="[ARTIFACT]", help="What it shall point to: a12, 12, another alias.")
    ] = None,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="Kept in the audit trail.")] = "",
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias; its history stays.")] = False,
    json: Json = False,
) -> None:
    """Point an alias to an artifact, or move it there."""
    from orchestrator.registry import aliases as store
    from orchestrator.registry.storage.engine import Registry
    from orchestrator.settings import load_settings

    if remove == (artifact is not None):
        raise BadInput("name an artifact, or --remove", where=name, hint=f"for example `ptq artifact alias {name} a1`")
    registry = Registry.open(load_settings())
    user, now = registry.settings.user, time.time()
    if artifact is None:
        moved: store.Move | None = store.remove_alias(registry, name, user=user, now=now, why=why)
    else:
        moved = store.set_alias(registry, name, artifact, user=user, now=now, why=why)
    if json:
        print_json(None if moved is None else moved.as_json())
    elif moved is None:
        say(f"{name} points there already")
    else:
        say(f"{name}: {_short(moved.from_digest)} -> {_short(moved.to_digest)}")


def aliases(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME@LABEL]", help="Its history; default: all aliases.")
    ] = None,
    json: Json = False,
) -> None:
    """List the aliases, or where one has pointed since when."""
    from orchestrator.registry import aliases as store
    from orchestrator.registry.storage.engine import Registry
    from orchestrator.settings import load_settings

    registry = Registry.open(load_settings())
    if name is not None:
        moves = store.history(registry, name)
        if json:
            print_json([move.as_json() for move in moves])
            return
        rows = [[when(m.at), m.user, _short(m.from_digest), _short(m.to_digest), m.why] for m in moves]
        table(["when", "by", "from", "to", "why"], rows)
        return
    found = store.list_aliases(registry)
    if json:
        print_json([{**vars(one), "artifact": one.ref} for one in found])
    elif not found:
        note("no aliases yet; make one with `ptq artifact alias NAME@LABEL ARTIFACT`")
    else:
        table(["alias", "artifact", "digest"], [[one.name, one.ref, _short(one.digest)] for one in found])


def _short(digest: str | None) -> str:
    return "nothing" if digest is None else digest.removeprefix("sha256:")[:12]
