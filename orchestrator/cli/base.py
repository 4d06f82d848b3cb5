"""`ptq base`: register, list, show and verify frozen models."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.common import Json, size, when
from orchestrator.cli.output.render import note, print_json, say, table
from orchestrator.cli.pretrain import pretrain

if TYPE_CHECKING:
    from orchestrator.registry.storage.engine import Registry


def register(app: typer.Typer) -> None:
    """Add `ptq base`."""
    verbs = typer.Typer(
        help="Register, list, show and verify frozen models.", no_args_is_help=True, rich_markup_mode=None
    )
    verbs.command("add")(add)
    verbs.command("list")(list_bases)
    verbs.command("show")(show)
    verbs.command("verify")(verify)
    verbs.command("pretrain")(pretrain)
    app.add_typer(verbs, name="base")


def add(
    name: Annotated[str, typer.Argument(help="The name that recipes use.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="A folder that transformers saved, a hub id, or an artifact of lm-adapt: a3."
        ),
    ],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", metavar="NAME", help="Default: what its model card says.")
    ] = None,
    json: Json = False,
) -> None:
    """Register a model under a name. It stays where it is; its weights are hashed once."""
    from orchestrator.registry import bases
    from orchestrator.registry.storage.engine import Registry
    from orchestrator.settings import load_settings

    settings = load_settings()
    registry = Registry.open(settings, create=True)
    source = _adapted(registry, source) or source
    base = bases.add_base(
        registry, name, source, user=settings.user, now=time.time(), revision=revision, licence=licence
    )
    if json:
        print_json(base.as_json())
        return
    facts = base.facts
    say(f"{base.name}: {facts.architecture}, {facts.kind}, {_millions(facts.parameters)} parameters")
    say(f"  folder       {base.path}")
    say(f"  fingerprint  {base.fingerprint}")
    if facts.origin:
        say(f"  made of      {_made_of(facts.origin)}")


def _adapted(registry: Registry, source: str) -> str | None:
    """The folder of the base in an artifact such as `a3`; None where the source is no artifact."""
    from orchestrator.errors import BadInput
    from orchestrator.paths import ArtifactPaths
    from orchestrator.registry.artifacts import get_artifact

    if not re.fullmatch(r"a[0-9]+", source) or Path(source).exists():
        return None
    folder = ArtifactPaths(get_artifact(registry, source).path).base
    if not folder.is_dir():
        what = f"{source} holds no base; only lm-adapt leaves one"
        raise BadInput(what, hint="`ptq artifact list` shows the artifacts and their methods")
    return str(folder)


def list_bases(json: Json = False) -> None:
    """List the registered models."""
    from orchestrator.registry import bases
    from orchestrator.registry.storage.engine import Registry
    from orchestrator.settings import load_settings

    found = bases.list_bases(Registry.open(load_settings()))
    if json:
        print_json([base.as_json() for base in found])
        return
    if not found:
        note("no bases yet; register one with `ptq base add NAME PATH`")
        return
    table(
        ["base", "kind", "architecture", "parameters", "folder", "added", "by"],
        [
            [
                base.name,
                base.facts.kind,
                base.facts.architecture,
                _millions(base.facts.parameters),
                base.path,
                when(base.created_at),
                base.created_by,
            ]
            for base in found
        ],
        right=["parameters"],
    )


def show(name: Annotated[str, typer.Argument(help="A name from `ptq base list`.")], json: Json = False) -> None:
    """Show a registered model."""
    from orchestrator.recipe.fitting import fitting
    from orchestrator.registry import bases
    from orchestrator.registry.storage.engine import Registry
    from orchestrator.settings import load_settings

    base = bases.get_base(Registry.open(load_settings()), name)
    methods = fitting(base.facts)
    if json:
        print_json({**base.as_json(), "methods": methods})
        return
    facts = asdict(base.facts) | {"parameters": f"{base.facts.parameters:,}"}
    origin = facts.pop("origin")
    for key, value in {
        "base": base.name,
        "folder": base.path,
        "source": base.source,
        "revision": base.revision,
        "fingerprint": base.fingerprint,
        **{name.replace("_", " "): value for name, value in facts.items()},
        **({"made of": _made_of(origin)} if origin else {}),
        "size": size(base.bytes),
        "licence": base.licence or "not known",
        "added": f"{when(base.created_at)} by {base.created_by}",
    }.items():
        say(f"{key:15} {_plain(value)}")
    for method, tasks in methods.items():
        say(f"{'fits':15} {method}: {', '.join(tasks)}")


def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="[BASE...]", help="Default: all.")] = None,
    json: Json = False,
) -> None:
    """Hash weights, tokenizer and configuration again. Exit code 1 when something is not as it was registered."""
    from orchestrator.registry import bases
    from orchestrator.registry.storage.engine import Registry
    from orchestrator.settings import load_settings

    registry = Registry.open(load_settings())
    chosen = [bases.get_base(registry, name) for name in names] if names else bases.list_bases(registry)
    found = {base.name: bases.faults(base) for base in chosen}
    if json:
        print_json([{"base": name, "faults": faults} for name, faults in found.items()])
    else:
        for base in chosen:
            whole = "whole" if base.companions else f"its weights are whole; {_NOT_WRITTEN.format(base=base)}"
            say(f"{base.name}: {'; '.join(found[base.name]) or whole}")
    if any(found.values()):
        raise typer.Exit(1)


_NOT_WRITTEN = (
    "its tokenizer and configuration were not written down when it was registered: "
    "`ptq base add {base.name} {base.path}` does"
)


def _made_of(origin: Mapping[str, Any]) -> str:
    """What LM adaptation has written beside the base that it left."""
    told = f"{origin.get('parent')}, {origin.get('steps')} steps of LM adaptation"
    return told + "".join(f", {key} {origin[key]}" for key in ("dataset", "job") if key in origin)


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "-"}[value]
    return (", ".join(map(str, value)) or "-") if isinstance(value, list | tuple) else value


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f}M" if count >= 100_000 else f"{count:,}"
