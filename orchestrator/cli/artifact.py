"""`ptq artifact`: list, show and verify what jobs left; exchange.py and alias.py hold its other verbs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli import alias, exchange
from orchestrator.cli.common import Json, open_registry, size, when
from orchestrator.cli.output.render import note, number, print_json, say, table
from orchestrator.cli.show import patterns_table
from orchestrator.paths import ArtifactPaths, read_json
from orchestrator.recipe.scores import TELLING

if TYPE_CHECKING:
    from orchestrator.registry.artifacts import Artifact

Ref = Annotated[
    str, typer.Argument(metavar="ARTIFACT", help="Its id (a12), its job (12), an alias or the start of its digest.")
]


def register(app: typer.Typer) -> None:
    """Add `ptq artifact`."""
    verbs = typer.Typer(
        help="List, show, verify, name, export and import trained prompts.", no_args_is_help=True, rich_markup_mode=None
    )
    verbs.command("list")(list_artifacts)
    verbs.command("show")(show)
    verbs.command("verify")(verify)
    verbs.command("export")(exchange.export)
    verbs.command("import")(exchange.import_)
    verbs.command("alias")(alias.alias)
    verbs.command("aliases")(alias.aliases)
    app.add_typer(verbs, name="artifact")


def list_artifacts(json: Json = False) -> None:
    """List all artifacts."""
    from orchestrator.registry import artifacts
    from orchestrator.registry.aliases import list_aliases

    registry = open_registry()
    found = artifacts.list_artifacts(registry)
    named: dict[int, list[str]] = {}
    for one in list_aliases(registry):
        named.setdefault(one.artifact_id, []).append(one.name)
    if json:
        print_json([{**artifact.as_json(), "aliases": named.get(artifact.id, [])} for artifact in found])
        return
    if not found:
        note("no artifacts yet; a job leaves one when it succeeds")
        return
    table(
        ["artifact", "alias", "job", "name", "method", "base", "dataset", "metrics", "size", "made"],
        [
            [
                artifact.ref,
                " ".join(named.get(artifact.id, [])),
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


Neighbours = Annotated[
    bool, typer.Option("--neighbours", help="The words nearest to each virtual token, by the cosine of embeddings.")
]


def show(ref: Ref, neighbours: Neighbours = False, json: Json = False) -> None:
    """Show an artifact: what was trained, on what, with which result, and where it lies."""
    from orchestrator.cli.output.words import best_step, found_words, neighbours_of, print_neighbours
    from orchestrator.registry import artifacts

    artifact = artifacts.get_artifact(open_registry(), ref)
    if neighbours:
        if json:
            print_json(neighbours_of(artifact.path, artifact.ref))
        else:
            print_neighbours(artifact.path, artifact.ref)
        return
    if json:
        print_json(artifact.as_json())
        return
    summary, facts = artifact.summary, _facts(artifact)
    for key, value in {
        "artifact": artifact.ref,
        "name": artifact.job_name,
        "job": f"{artifact.job_id}, attempt {artifact.attempt}" if artifact.job_id else "",
        "imported": _imported(artifact),
        "method": artifact.method,
        "task": summary.get("task", ""),
        "length": summary.get("length", ""),
        **found_words(facts),
        "best": best_step(facts),
        "seed": summary.get("seed", ""),
        "base": _part(artifact, "base", "id"),
        "revision": _part(artifact, "base", "revision"),
        "dataset": _dataset(artifact),
        "metrics": _metrics(artifact),
        "unscored": "; ".join(f"{split}: {why}" for split, why in (summary.get("unscored") or {}).items()),
        "made": when(artifact.created_at),
        "digest": artifact.digest,
        "size": size(artifact.bytes),
        "folder": artifact.path,
    }.items():
        if value != "":
            say(f"{key:9} {value}")
    patterns_table(summary.get("patterns") or ())


def verify(
    refs: Annotated[list[str] | None, typer.Argument(metavar="[ARTIFACT...]", help="Default: all.")] = None,
    json: Json = False,
) -> None:
    """Hash every file again. Exit code 1 when something does not hold."""
    from orchestrator.registry import artifacts

    registry = open_registry()
    chosen = [artifacts.get_artifact(registry, ref) for ref in refs] if refs else artifacts.list_artifacts(registry)
    found = {artifact.ref: artifacts.verify(artifact) for artifact in chosen}
    if json:
        print_json([{"artifact": ref, "faults": faults} for ref, faults in found.items()])
    else:
        for ref, faults in found.items():
            say(f"{ref}: {'; '.join(faults) or 'whole'}")
    if any(found.values()):
        raise typer.Exit(1)


def _facts(artifact: Artifact) -> dict[str, Any]:
    """All that the artifact says of itself; nothing where its files are damaged: `verify` tells of that."""
    try:
        return dict(read_json(ArtifactPaths(artifact.path).facts))
    except (OSError, ValueError):
        return {}


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
    for split in TELLING:
        if metrics.get(split):
            return ", ".join(f"{name} {number(value)}" for name, value in metrics[split].items()) + f" ({split})"
    return ""
