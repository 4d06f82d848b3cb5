"""Aliases: names such as `sst2@best` that point to an artifact and may be moved; every move is kept.

A label is never a number: `sst2@2` is a dataset's version.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from orchestrator.errors import BadInput, NotFound, did_you_mean
from orchestrator.registry.artifacts import get_artifact
from orchestrator.registry.storage.engine import Registry
from orchestrator.registry.storage.tables import alias_moves, aliases, artifacts

ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}@[A-Za-z][A-Za-z0-9._-]{0,18}")


@dataclass(frozen=True)
class Alias:
    name: str
    artifact_id: int
    digest: str

    @property
    def ref(self) -> str:
        return f"a{self.artifact_id}"


@dataclass(frozen=True)
class Move:
    """One entry of the audit trail."""

    name: str
    from_digest: str | None  #: None: the alias was new
    to_digest: str | None  #: None: it was removed
    at: float
    user: str
    why: str

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


def set_alias(registry: Registry, name: str, ref: str, *, user: str, now: float, why: str = "") -> Move | None:
    """Point the alias to an artifact; None when it does so already. Raises BadInput and NotFound."""
    _check(name)
    artifact = get_artifact(registry, ref)
    with registry.write() as connection:
        if connection.execute(sa.select(artifacts.c.id).where(artifacts.c.id == artifact.id)).first() is None:
            raise NotFound(f"there is no artifact {ref!r} any more", hint="see `ptq artifact list`")
        before = _current(connection, name)
        if before is not None and before.artifact_id == artifact.id:
            return None
        if before is None:
            connection.execute(sa.insert(aliases).values(name=name, artifact_id=artifact.id))
        else:
            connection.execute(sa.update(aliases).where(aliases.c.name == name).values(artifact_id=artifact.id))
        return _record(connection, Move(name, before.digest if before else None, artifact.digest, now, user, why))


def remove_alias(registry: Registry, name: str, *, user: str, now: float, why: str = "") -> Move:
    """Raises NotFound."""
    with registry.write() as connection:
        before = _current(connection, name)
        if before is None:
            raise _no_such(connection, name)
        connection.execute(sa.delete(aliases).where(aliases.c.name == name))
        return _record(connection, Move(name, before.digest, None, now, user, why))


def list_aliases(registry: Registry) -> list[Alias]:
    with registry.read() as connection:
        return [Alias(*row) for row in connection.execute(_QUERY.order_by(aliases.c.name))]


def history(registry: Registry, name: str) -> list[Move]:
    """Where the alias pointed, oldest first. Raises NotFound for one that never was."""
    columns = [alias_moves.c[field] for field in Move.__dataclass_fields__]
    with registry.read() as connection:
        rows = connection.execute(sa.select(*columns).where(alias_moves.c.name == name).order_by(alias_moves.c.id))
        found = [Move(*row) for row in rows]
        if not found:
            raise _no_such(connection, name)
    return found


_QUERY = sa.select(aliases.c.name, aliases.c.artifact_id, artifacts.c.digest).join(artifacts)


def _check(name: str) -> None:
    if not ALIAS.fullmatch(name):
        raise BadInput(
            f"{name!r} cannot be an alias",
            hint="write NAME@LABEL, the label beginning with a letter, for example sst2@best or sst2@prod",
        )


def _current(connection: Connection, name: str) -> Alias | None:
    row = connection.execute(_QUERY.where(aliases.c.name == name)).first()
    return None if row is None else Alias(*row)


def _record(connection: Connection, move: Move) -> Move:
    connection.execute(sa.insert(alias_moves).values(**vars(move)))
    return move


def _no_such(connection: Connection, name: str) -> NotFound:
    known = list(connection.execute(sa.select(aliases.c.name)).scalars())
    return NotFound(f"there is no alias {name!r}", hint=did_you_mean(name, known, "see `ptq artifact aliases`"))
