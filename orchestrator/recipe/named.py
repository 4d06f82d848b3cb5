"""The files that a recipe names besides its base and its rows. Each is part of the job by its digest: a file that has
become another one ends the job before it starts, and never changes it unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import BadRecipe
from orchestrator.manifest import file_sha256
from orchestrator.paths import ArtifactPaths
from orchestrator.recipe.schema import JobRecipe
from orchestrator.recipe.starts import FileInit, PromptInit
from orchestrator.recipe.tasks import Cloze


@dataclass(frozen=True)
class NamedFile:
    """A file as the recipe names it."""

    key: str  #: where it stands in the recipe
    path: Path
    digest: str | None  #: None: a job of a time that did not write it down


def named_files(recipe: JobRecipe) -> list[NamedFile]:
    """All of them."""
    found: list[NamedFile] = []
    _each(recipe, lambda file: found.append(file) or file)  # type: ignore[func-returns-value]
    return found


def with_digests(recipe: JobRecipe) -> JobRecipe:
    """The recipe with the digest of each file that is there; whether one is missing is asked by `recipe.fit`.

    Raises BadRecipe for a file that is another one than the recipe itself says.
    """

    def hashed(file: NamedFile) -> NamedFile:
        if not file.path.is_file():
            return file
        found = digest_of(file.path)
        if file.digest not in {None, found}:
            what = f"{file.path} is another file than the recipe says ({found} instead of {file.digest})"
            raise BadRecipe(what, where=file.key, hint="put it back, or leave the digest out")
        return NamedFile(file.key, file.path, found)

    return _each(recipe, hashed)


def with_files(recipe: JobRecipe, where: Callable[[NamedFile], Path]) -> JobRecipe:
    """The recipe with each of its files somewhere else."""
    return _each(recipe, lambda file: NamedFile(file.key, where(file), file.digest))


def changed_files(recipe: Mapping[str, Any]) -> list[str]:
    """What is not as it was when the job was submitted, in words; of a recipe of another time altogether nothing."""
    try:
        files = named_files(JobRecipe.model_validate(recipe))
    except ValidationError:
        return []
    return [f"{file.path} {fault}" for file in files if (fault := changed(file))]


def changed(file: NamedFile) -> str | None:
    """`is gone`, `was changed`, or None where it is as it was or nobody knows how it was."""
    if file.digest is None:
        return None
    if not file.path.is_file():
        return "is gone"
    return None if digest_of(file.path) == file.digest else "was changed"


def digest_of(path: Path) -> str:
    return "sha256:" + file_sha256(path)


def _each(recipe: JobRecipe, change: Callable[[NamedFile], NamedFile]) -> JobRecipe:
    """The recipe with what `change` makes of each file; itself where it names none."""
    parts: dict[str, Any] = {}
    task, init = recipe.task, getattr(recipe.method, "init", None)
    if isinstance(task, Cloze) and task.vocabulary is not None:
        made = change(NamedFile("task.vocabulary", Path(task.vocabulary), task.vocabulary_digest))
        new = {"vocabulary": str(made.path), "vocabulary_digest": made.digest}
        parts["task"] = task.model_copy(update=new)
    started = _started(init, change) if isinstance(init, FileInit | PromptInit) else None
    if started is not None:
        parts["method"] = recipe.method.model_copy(update={"init": init.model_copy(update=started)})  # type: ignore[union-attr]
    return recipe.model_copy(update=parts) if parts else recipe


def _started(init: FileInit | PromptInit, change: Callable[[NamedFile], NamedFile]) -> dict[str, Any]:
    if isinstance(init, FileInit):
        made = change(NamedFile("method.init.path", Path(init.path), init.digest))
        return {"path": str(made.path), "digest": made.digest}
    prompts = [change(file) for file in _prompts(init)]
    known = [file.digest for file in prompts if file.digest is not None]
    return {
        "path": [str(file.path.parent) for file in prompts],
        "digests": known if len(known) == len(prompts) else None,
    }


def _prompts(init: PromptInit) -> Iterator[NamedFile]:
    digests: Sequence[str | None] = init.digests or [None] * len(init.path)
    for folder, digest in zip(init.path, digests, strict=True):
        yield NamedFile("method.init.path", ArtifactPaths(Path(folder)).prompt, digest)
