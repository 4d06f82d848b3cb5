"""Bases: frozen models under a name, and how the `model` of a recipe becomes a folder with a fingerprint.

A registered base stays where it is; the registry keeps the fingerprint of its weights and the digests of the files
beside them (tokenizer, configuration), and notices when any is changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping

from orchestrator.companions import changes, companions, refuse_changes
from orchestrator.errors import BadInput, NotFound, did_you_mean
from orchestrator.jobspec import BaseSpec
from orchestrator.recipe.bases import BaseFacts, read_base_facts, refuse_without_tokenizer
from orchestrator.registry.hub import fetch_model, is_hub_id
from orchestrator.registry.names import check_name
from orchestrator.registry.storage.engine import Registry
from orchestrator.registry.storage.tables import bases
from orchestrator.weights import fingerprint, weight_files


@dataclass(frozen=True)
class Base:
    """A registered base."""

    name: str
    path: Path
    source: str  #: folder or hub id that the user named
    revision: str  #: commit of a hub id, else the fingerprint
    fingerprint: str
    facts: BaseFacts
    files: dict[str, list[int]]  #: weight file: size and modification time (ns), as they were fingerprinted
    created_at: float
    created_by: str
    licence: str | None = None
    companions: dict[str, str] = field(default_factory=dict)  #: empty: registered by a ptq that did not write them down

    @property
    def bytes(self) -> int:
        """Of its weight files, when they were fingerprinted."""
        return sum(size for size, _ in self.files.values())

    def as_json(self) -> dict[str, Any]:
        more = {"path": str(self.path), "facts": asdict(self.facts), "kind": self.facts.kind, "bytes": self.bytes}
        return {**vars(self), **more}


@dataclass(frozen=True)
class ResolvedBase:
    spec: BaseSpec
    facts: BaseFacts


def add_base(
    registry: Registry,
    name: str,
    source: str,
    *,
    user: str,
    now: float,
    revision: str | None = None,
    licence: str | None = None,
) -> Base:
    """Register a folder, or a hub id (which is fetched now), under a name. The same again changes nothing.

    Raises BadInput (bad name, a name that is taken, pickled weights, not a model) and NotFound.
    """
    check_name(name, "base")
    folder, commit = _located(source, revision, offline=registry.settings.offline)
    made = local_base(name, folder, user=user, now=now)
    if commit:
        made = replace(made, source=source, revision=commit)
    made = replace(made, licence=licence or made.licence)
    known = _same_or_none(registry, made)
    if known is not None:
        return known
    with registry.write() as connection:
        if not keep_base(connection, made):
            raise BadInput(f"another base was called {name!r} a moment ago", hint="choose another name")
    return made


def local_base(name: str, folder: Path, *, user: str, now: float) -> Base:
    """What would be registered of a folder; its weights are hashed. Raises BadInput."""
    check_name(name, "base")
    facts = read_base_facts(folder)
    refuse_without_tokenizer(folder)
    weights = fingerprint(folder)
    return Base(
        name=name,
        path=folder,
        source=str(folder),
        revision=weights,
        fingerprint=weights,
        facts=facts,
        files=_files(folder),
        created_at=now,
        created_by=user,
        licence=stated_licence(folder),
        companions=companions(folder),
    )


def keep_base(connection: Connection, made: Base) -> bool:
    """Enter it, unless it is there; False where another base has its name."""
    known = connection.execute(sa.select(bases).where(bases.c.name == made.name)).mappings().one_or_none()
    if known is None:
        connection.execute(sa.insert(bases).values(**_row(made)))
        return True
    return (known["fingerprint"], known["path"]) == (made.fingerprint, str(made.path))


def is_taken(connection: Connection, name: str) -> bool:
    return connection.execute(sa.select(bases.c.id).where(bases.c.name == name)).scalar() is not None


def stated_licence(folder: Path) -> str | None:
    """What the model card says: `license: NAME` in the head of README.md, as the hub writes it."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:20_000]
    except OSError:
        return None
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^licen[sc]e:\s*['\"]?([\w.+-]{1,100})", head[1], re.MULTILINE) if head else None
    return found[1] if found else None


def get_base(registry: Registry, name: str) -> Base:
    """A registered base. Raises NotFound."""
    found = _find(registry, name)
    if found is None:
        names = [base.name for base in list_bases(registry)]
        raise NotFound(f"there is no base {name!r}", hint=did_you_mean(name, names, "see `ptq base list`"))
    return found


def list_bases(registry: Registry) -> list[Base]:
    with registry.read() as connection:
        rows = connection.execute(sa.select(bases).order_by(bases.c.name)).mappings().all()
    return [_base(row) for row in rows]


def base_folder(registry: Registry, spec: Mapping[str, Any]) -> Path:
    """Where the base lies that a job or an artifact was made on: the folder it names, else a registered one like it.

    `spec` is the base of a job, or what `artifact.json` says of it. Raises NotFound, and BadInput where the weights are
    there, but no tokenizer and configuration as they were then.
    """
    same = [base for base in list_bases(registry) if base.fingerprint == spec["fingerprint"] and base.path.is_dir()]
    named = [Path(spec["path"])] if (Path(str(spec.get("path", "/"))) / "config.json").is_file() else []
    folders = [*named, *(base.path for base in sorted(same, key=lambda base: base.name != spec["id"]))]
    written = spec.get("companions") or {}
    for folder in folders:
        if not changes(written, folder):
            return folder
    if folders:
        refuse_changes(written, folders[0], "this was trained on it")
    where = Path(str(spec["id"])).expanduser()
    if (where / "config.json").is_file():
        return where
    raise NotFound(
        f"the base {spec['id']!r} that this artifact was made on is not registered here",
        hint=f"register a folder with the same weights ({str(spec['fingerprint'])[:19]}…): `ptq base add NAME PATH`",
    )


def resolve_base(registry: Registry, model: str, revision: str | None = None, *, offline: bool) -> ResolvedBase:
    """What the recipe calls `base.model`: a registered name, else a local folder, else a hub id.

    The weights of a registered base are hashed again only when their files changed; others are hashed now.
    Raises NotFound, and BadInput for a folder that is no usable model or a registered base whose weights changed.
    """
    known = _find(registry, model)
    if known is not None:
        _refuse_other_revision(model, known, revision)
        weights = _checked_fingerprint(known)
        refuse_changes(known.companions, known.path, f"the base {known.name!r} was registered")
        return ResolvedBase(_spec(model, known.path, known.revision, weights, known.facts), known.facts)
    folder, commit = _located(model, revision, offline=offline, known=[base.name for base in list_bases(registry)])
    facts = read_base_facts(folder)
    refuse_without_tokenizer(folder)
    weights = fingerprint(folder)
    return ResolvedBase(_spec(model, folder, commit or weights, weights, facts), facts)


def _spec(model: str, folder: Path, revision: str, weights: str, facts: BaseFacts) -> BaseSpec:
    return BaseSpec(model, str(folder), revision, weights, facts.kind, companions(folder))


def _located(source: str, revision: str | None, *, offline: bool, known: list[str] | None = None) -> tuple[Path, str]:
    """(folder, commit); a local folder has no commit."""
    folder = Path(source).expanduser()
    if folder.is_dir() and ((folder / "config.json").is_file() or not is_hub_id(source)):
        if revision not in (None, "main"):
            raise BadInput(f"a local folder has no revision {revision!r}", where=source, hint="leave the revision out")
        return folder.resolve(), ""
    if folder.is_file():
        raise BadInput("a base is a folder, not a file", where=source)
    if not is_hub_id(source):
        raise NotFound(f"there is no base and no folder {source!r}", hint=_base_hint(source, known))
    return fetch_model(source, revision or "main", offline=offline, hint=_base_hint(source, known))


def _base_hint(source: str, known: list[str] | None) -> str:
    return did_you_mean(source, known or [], "register a folder that holds it: `ptq base add NAME PATH`")


def _refuse_other_revision(model: str, known: Base, revision: str | None) -> None:
    if revision in (None, "main") or known.revision.startswith(str(revision)):
        return
    raise BadInput(
        f"the base {model!r} is registered at revision {known.revision[:19]}, not {revision!r}",
        hint="leave the revision out, or register the other one: `ptq base add NAME ID --revision R`",
    )


def faults(base: Base) -> list[str]:
    """What is not as it was registered, in words; all weights are hashed again."""
    if not base.path.is_dir():
        return ["its folder is gone"]
    try:
        weights = [] if fingerprint(base.path) == base.fingerprint else ["its weights were changed"]
    except BadInput as error:
        weights = [error.message]
    return weights + changes(base.companions, base.path)


def _changed(base: Base) -> BadInput:
    return BadInput(
        f"the weights of the base {base.name!r} were changed after it was registered",
        where=str(base.path),
        hint="restore them, or register the new ones under another name: `ptq base add NAME PATH`",
    )


def _checked_fingerprint(base: Base) -> str:
    if not base.path.is_dir():
        raise NotFound(f"the folder of the base {base.name!r} is gone", where=str(base.path))
    if _files(base.path) != base.files and fingerprint(base.path) != base.fingerprint:
        raise _changed(base)
    return base.fingerprint


def _files(folder: Path) -> dict[str, list[int]]:
    stats = {path.name: path.stat() for path in weight_files(folder)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _same_or_none(registry: Registry, made: Base) -> Base | None:
    known = _find(registry, made.name)
    if known is None:
        return None
    if (known.fingerprint, known.path) != (made.fingerprint, made.path):
        what = f"there is another base {made.name!r} ({known.source}); jobs rely on it"
        raise BadInput(what, hint="choose another name")
    refuse_changes(known.companions, known.path, f"the base {known.name!r} was registered")
    if known.companions:
        return known
    noted = replace(known, companions=made.companions)
    with registry.write() as connection:
        connection.execute(sa.update(bases).where(bases.c.name == made.name).values(facts=_row(noted)["facts"]))
    return noted


def _find(registry: Registry, name: str) -> Base | None:
    with registry.read() as connection:
        row = connection.execute(sa.select(bases).where(bases.c.name == name)).mappings().one_or_none()
    return None if row is None else _base(row)


def _row(base: Base) -> dict[str, Any]:
    return {
        "name": base.name,
        "path": str(base.path),
        "source": base.source,
        "revision": base.revision,
        "fingerprint": base.fingerprint,
        "kind": base.facts.kind,
        "facts": {**asdict(base.facts), "files": base.files, "companions": base.companions},
        "created_at": base.created_at,
        "created_by": base.created_by,
        "licence": base.licence,
    }


def _base(row: RowMapping) -> Base:
    facts = dict(row["facts"])
    files, beside = facts.pop("files", {}), facts.pop("companions", {})
    return Base(
        name=row["name"],
        path=Path(row["path"]),
        source=row["source"],
        revision=row["revision"],
        fingerprint=row["fingerprint"],
        facts=BaseFacts(**facts),
        files=files,
        created_at=row["created_at"],
        created_by=row["created_by"],
        licence=row["licence"],
        companions=beside,
    )
