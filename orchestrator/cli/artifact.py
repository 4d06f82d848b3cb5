"""`ptq artifact`: list, show, verify and export what jobs left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.common import Json, size, when
from orchestrator.cli.render import note, number, print_json, say, table
from orchestrator.errors import BadInput

if TYPE_CHECKING:
    from orchestrator.registry.artifacts import Artifact
    from orchestrator.registry.engine import Registry

Ref = Annotated[str, typer.Argument(metavar="ARTIFACT", help="Its id (a12), its job (12) or the start of its digest.")]


def register(app: typer.Typer) -> None:
    """Add `ptq artifact`."""
    verbs = typer.Typer(
        help="List, show, verify and export trained prompts.", no_args_is_help=True, rich_markup_mode=None
    )
    verbs.command("list")(list_artifacts)
    verbs.command("show")(show)
    verbs.command("verify")(verify)
    verbs.command("export")(export)
    app.add_typer(verbs, name="artifact")


def list_artifacts(json: Json = False) -> None:
    """List all artifacts."""
    from orchestrator.registry import artifacts

    found = artifacts.list_artifacts(_registry())
    if json:
        print_json([artifact.as_json() for artifact in found])
        return
    if not found:
        note("no artifacts yet; a job leaves one when it succeeds")
        return
    table(
        ["artifact", "job", "name", "method", "base", "dataset", "metrics", "size", "made"],
        [
            [
                artifact.ref,
                artifact.job_id or "",
                artifact.job_name,
                artifact.method,
                _part(artifact, "base", "id"),
                _dataset(artifact),
                _metrics(artifact),
                size(artifact.bytes),
                when(artifact.created_at),
            ]
            for artifact in found
        ],
        right=["job", "size"],
    )


def show(ref: Ref, json: Json = False) -> None:
    """Show an artifact: what was trained, on what, with which result, and where it lies."""
    from orchestrator.registry import artifacts

    artifact = artifacts.get_artifact(_registry(), ref)
    if json:
        print_json(artifact.as_json())
        return
    summary = artifact.summary
    for key, value in {
        "artifact": artifact.ref,
        "name": artifact.job_name,
        "job": f"{artifact.job_id}, attempt {artifact.attempt}" if artifact.job_id else "",
        "imported": _imported(artifact),
        "method": artifact.method,
        "task": summary.get("task", ""),
        "length": summary.get("length", ""),
        "seed": summary.get("seed", ""),
        "base": _part(artifact, "base", "id"),
        "revision": _part(artifact, "base", "revision"),
        "dataset": _dataset(artifact),
        "metrics": _metrics(artifact),
        "made": when(artifact.created_at),
        "digest": artifact.digest,
        "size": size(artifact.bytes),
        "folder": artifact.path,
    }.items():
        if value != "":
            say(f"{key:9} {value}")


def verify(
    refs: Annotated[list[str] | None, typer.Argument(metavar="[ARTIFACT...]", help="Default: all.")] = None,
    json: Json = False,
) -> None:
    """Hash every file again. Exit code 1 when something does not hold."""
    from orchestrator.registry import artifacts

    registry = _registry()
    chosen = [artifacts.get_artifact(registry, ref) for ref in refs] if refs else artifacts.list_artifacts(registry)
    found = {artifact.ref: artifacts.verify(artifact) for artifact in chosen}
    if json:
        print_json([{"artifact": ref, "faults": faults} for ref, faults in found.items()])
    else:
        for ref, faults in found.items():
            say(f"{ref}: {'; '.join(faults) or 'whole'}")
    if any(found.values()):
        raise typer.Exit(1)


def export(
    ref: Ref,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="A folder to be made.")],
    format_: Annotated[str, typer.Option("--format", metavar="F", help="peft: a folder that PEFT loads.")] = "peft",
    base_path: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Where the other tool finds the base; default: where we found it."),
    ] = None,
) -> None:
    """Write an artifact in another tool's format."""
    from orchestrator.registry import artifacts

    if format_ != "peft":
        raise BadInput(f"no format {format_!r}", where="--format", hint="there is: peft")
    registry = _registry()
    artifact = artifacts.get_artifact(registry, ref)
    if output.exists():
        raise BadInput("already exists", where=str(output), hint="name a folder that does not exist yet")
    command = [sys.executable, "-P", "-m", "orchestrator.tuning.export", str(artifact.path), str(output)]
    command += ["--format", format_, "--base-path", base_path or _base_path(registry, artifact)]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise typer.Exit(code)


def _registry() -> Registry:
    from orchestrator.registry.engine import Registry
    from orchestrator.settings import load_settings

    return Registry.open(load_settings())


def _base_path(registry: Registry, artifact: Artifact) -> str:
    """A registered name means nothing to another tool: its folder or hub id does."""
    from orchestrator.registry.bases import list_bases

    wanted = _part(artifact, "base", "id")
    return next((base.source for base in list_bases(registry) if base.name == wanted), wanted)


def _part(artifact: Artifact, *keys: str) -> str:
    value: Any = artifact.summary
    for key in keys:
        value = value.get(key, "") if isinstance(value, dict) else ""
    return str(value)


def _imported(artifact: Artifact) -> str:
    origin = artifact.origin
    return f"from {origin['source']} ({origin['format']}) by {origin['user']}" if origin else ""


def _dataset(artifact: Artifact) -> str:
    name, version = _part(artifact, "dataset", "name"), _part(artifact, "dataset", "version")
    return f"{name}@{version}" if name else ""


def _metrics(artifact: Artifact) -> str:
    """`bleu 61.2 (validation)`: the last split that was evaluated is the one that counts."""
    metrics = artifact.summary.get("metrics") or {}
    for split in ("test", "validation"):
        if metrics.get(split):
            return ", ".join(f"{name} {number(value)}" for name, value in metrics[split].items()) + f" ({split})"
    return ""
