"""The artifacts that `ptq predict` and `ptq score` use: how they are named, what they were trained as, their base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.errors import BadInput
from orchestrator.paths import ArtifactPaths, read_json

if TYPE_CHECKING:
    from orchestrator.recipe.schema import JobRecipe
    from orchestrator.registry.artifacts import Artifact
    from orchestrator.registry.storage.engine import Registry

Artifacts = Annotated[
    list[str],
    typer.Argument(
        metavar="ARTIFACT...",
        help="a12, an alias as sst2@best, a job id, a group as g3 (what all its jobs left), or the start of a digest "
        "(see `ptq artifact list`); several must be of one base and are used in one forward",
    ),
]
OnGpu = Annotated[
    bool | None,
    typer.Option(
        "--gpu/--cpu",
        help="--gpu: on a free GPU, reserved through the queue for as long as this runs; default: on the GPU that "
        "CUDA_VISIBLE_DEVICES names, else on the CPU",
    ),
]


def find_artifacts(registry: Registry, references: Sequence[str]) -> list[Artifact]:
    """Each artifact once, in the order in which they are named."""
    from orchestrator.registry import jobs
    from orchestrator.registry.artifacts import get_artifact

    found: dict[int, Artifact] = {}
    for reference in references:
        names = [reference]
        if reference[:1] == "g" and reference[1:].isdecimal():
            with registry.read() as conn:
                names = [str(job) for job in jobs.resolve(conn, [reference])]
        for name in names:
            one = get_artifact(registry, name)
            found.setdefault(one.id, one)
    return list(found.values())


def recipe_of(artifact: Artifact) -> JobRecipe:
    """As it was trained. BadInput for an import that reads a file of another machine."""
    from orchestrator.recipe.schema import JobRecipe

    recipe = JobRecipe.model_validate(read_json(ArtifactPaths(artifact.path).facts)["recipe"])
    _refuse_anothers_file(artifact, recipe)
    return recipe


def _refuse_anothers_file(artifact: Artifact, recipe: JobRecipe) -> None:
    """An imported artifact reads no file of this machine: an older ptq packed its vocabulary's path, not its words."""
    named = getattr(recipe.task, "vocabulary", None)
    if artifact.job_id is None and named is not None and not ArtifactPaths(artifact.path).vocabulary.is_file():
        what = f"{artifact.ref} was imported without the words that it answers with ({named})"
        raise BadInput(what, hint="export it again with this version of ptq, where its job ran, and import that")


def base_folder_of(registry: Registry, found: Sequence[Artifact]) -> str:
    """Where the one base of all these artifacts lies."""
    bases = [one.summary["base"] for one in found]
    for one, base in zip(found, bases, strict=True):
        if base["fingerprint"] != bases[0]["fingerprint"]:
            what = f"{found[0].ref} was trained on {bases[0]['id']}, {one.ref} on {base['id']}"
            raise BadInput(what, hint="artifacts are used together on one base; give a command for each base")
    return _folder_of(registry, found[0])


def _folder_of(registry: Registry, artifact: Artifact) -> str:
    from orchestrator.registry.bases import base_folder
    from orchestrator.registry.jobs import get_job

    if artifact.job_id is None:
        return str(base_folder(registry, artifact.summary["base"]))
    with registry.read() as connection:
        return str(base_folder(registry, get_job(connection, artifact.job_id).base))
