"""`ptq artifact export` and `import`: prompts in other tools' formats, and bundles between registries."""

from __future__ import annotations

import subprocess
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.common import Json, open_registry, size
from orchestrator.cli.output.render import note, print_json, say
from orchestrator.errors import BadInput, NotFound

if TYPE_CHECKING:
    from orchestrator.registry.artifacts import Artifact
    from orchestrator.registry.storage.engine import Registry


class Format(StrEnum):
    PEFT = "peft"
    NPY = "npy"
    VLLM = "vllm"


def export(
    ref: Annotated[str, typer.Argument(metavar="ARTIFACT", help="Its id (a12), its job (12) or an alias.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PATH", help="A folder or file to be made.")],
    format_: Annotated[
        Format, typer.Option("--format", help="peft: a folder; npy: an array; vllm: prompt_embeds.")
    ] = Format.PEFT,
    base_path: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Where the other tool finds the base; default: where we found it."),
    ] = None,
    bundle: Annotated[
        bool, typer.Option("--bundle", help="One file for another registry, with everything it comes from.")
    ] = False,
    with_data: Annotated[bool, typer.Option("--with-data", help="In a bundle: the rows of its datasets too.")] = False,
) -> None:
    """Write an artifact in another tool's format, or as a bundle."""
    from orchestrator.registry.artifacts import get_artifact

    registry = open_registry()
    artifact = get_artifact(registry, ref)
    if output.exists():
        raise BadInput("already exists", where=str(output), hint="choose a name that does not exist yet")
    if bundle:
        from orchestrator.registry.bundles import write_bundle

        written = write_bundle(registry, artifact, output, with_data=with_data)
        say(str(output))
        note(f"{size(output.stat().st_size)}: {written}; `ptq artifact import {output.name}` takes it in elsewhere")
        return
    if with_data:
        raise BadInput("only a bundle holds data", where="--with-data", hint="add --bundle")
    if not output.absolute().parent.is_dir():
        raise NotFound("there is no such folder", where=str(output.parent))
    command = [sys.executable, "-P", "-m", "orchestrator.tuning.export", str(artifact.path), str(output)]
    command += ["--format", format_, "--base-path", base_path or _base_path(registry, artifact)]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise typer.Exit(code)


def import_(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A PEFT folder, a .npy file of [tokens, width], or a bundle.")
    ],
    base: Annotated[
        str | None, typer.Option("--base", metavar="NAME", help="The base it was trained on: name, folder or hub id.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Default: the name of SOURCE.")] = None,
    task_from: Annotated[
        Path | None,
        typer.Option("--task-from", metavar="RECIPE", help="How to use it; default: write on behind {text}."),
    ] = None,
    json: Json = False,
) -> None:
    """Take in a prompt that another tool has trained, or a bundle of another registry."""
    from orchestrator.registry.storage.engine import Registry
    from orchestrator.settings import load_settings

    if not source.exists():
        raise NotFound("there is no such file or folder", where=str(source))
    registry = Registry.open(load_settings(), create=True)
    if source.is_file() and source.suffix != ".npy":
        _refuse_options({"--base": base, "--name": name, "--task-from": task_from})
        from orchestrator.registry.bundles import read_bundle

        found = read_bundle(registry, source, user=registry.settings.user, now=time.time())
    else:
        found = _adapter(registry, source, base, name, task_from)
    if json:
        print_json(found.as_json())
    else:
        say(f"{found.ref}: {found.job_name}, {found.method}, {found.summary.get('length', 0)} virtual tokens")
        say(f"  digest  {found.digest}")


def _adapter(registry: Registry, source: Path, base: str | None, name: str | None, task_from: Path | None) -> Artifact:
    from orchestrator.registry.bases import resolve_base
    from orchestrator.registry.imports import take_in
    from orchestrator.registry.names import check_name

    if base is None:
        raise BadInput("which base was it trained on?", where="--base", hint="see `ptq base list`")
    called = check_name(name or source.absolute().stem, "prompt")
    task = None if task_from is None else _task(task_from)
    spec = resolve_base(registry, base, offline=registry.settings.offline).spec

    def convert(request: dict[str, Any]) -> None:
        from orchestrator.cli.programs import program

        with program("orchestrator.tuning.adapters", request) as process:
            pass
        if process.returncode:
            raise typer.Exit(process.returncode)

    return take_in(registry, source, called, spec, task, convert, now=time.time())


def _task(path: Path) -> dict[str, Any]:
    from orchestrator.recipe.load import load_recipe

    return load_recipe(path).recipe.task.model_dump(mode="json")


def _refuse_options(given: dict[str, object]) -> None:
    for option, value in given.items():
        if value is not None:
            raise BadInput("a bundle says that itself", where=option, hint="leave it out")


def _base_path(registry: Registry, artifact: Artifact) -> str:
    """A registered name means nothing to another tool: its folder or hub id does."""
    from orchestrator.registry.bases import list_bases

    wanted = str((artifact.summary.get("base") or {}).get("id", ""))
    return next((base.source for base in list_bases(registry) if base.name == wanted), wanted)
