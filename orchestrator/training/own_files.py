"""The job's own copies of the files that its recipe names: what is edited or moved later changes nothing any more."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import BadRecipe
from orchestrator.paths import ArtifactPaths, JobPaths, write_atomic
from orchestrator.recipe.named import NamedFile, changed, with_files
from orchestrator.recipe.schema import JobRecipe
from orchestrator.recipe.tasks import Cloze


def with_own_files(recipe: JobRecipe, paths: JobPaths, *, copy: bool) -> JobRecipe:
    """The recipe with the job's own files; `copy`: make those that are not there. Raises BadRecipe for a changed one.

    Files of a job that was submitted before digests were written down stay where they are.
    """
    return with_files(recipe, lambda file: _own(file, paths, copy=copy))


def with_files_of(artifact: ArtifactPaths, recipe: JobRecipe) -> JobRecipe:
    """The recipe of an artifact with the files that the artifact holds itself; older ones hold none."""
    task = recipe.task
    if not isinstance(task, Cloze) or task.vocabulary is None or not artifact.vocabulary.is_file():
        return recipe
    return recipe.model_copy(update={"task": task.model_copy(update={"vocabulary": str(artifact.vocabulary)})})


def _own(file: NamedFile, paths: JobPaths, *, copy: bool) -> Path:
    if file.digest is None:
        return file.path
    own = NamedFile(file.key, paths.own_file(file.digest, file.path.name), file.digest)
    if changed(own) is None:
        return own.path
    fault = changed(file)
    if fault is not None:
        hint = "put it back and `ptq retry`, or submit again"
        raise BadRecipe(f"{file.path} {fault} since the job was submitted", where=file.key, hint=hint)
    if not copy:
        return file.path
    write_atomic(own.path, file.path.read_bytes())
    return own.path
