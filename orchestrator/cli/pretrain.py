"""`ptq base pretrain`: make a small base from a recipe and a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.programs import program
from orchestrator.errors import BadInput
from orchestrator.settings import load_settings


def pretrain(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="a recipe with the key `pretrain`")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="folder to make; must not exist")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change a value of the recipe")
    ] = None,
) -> None:
    """Pretrain a small base from scratch: causal, masked or encoder-decoder; add it with `ptq base add NAME DIR`."""
    from orchestrator.recipe.load import load_model
    from orchestrator.recipe.pretrain import PretrainRecipe
    from orchestrator.registry.datasets import get_version
    from orchestrator.registry.storage.engine import Registry
    from orchestrator.tasks.template import parse

    wanted = load_model(recipe, PretrainRecipe, set_ or [])
    if output.exists():
        raise BadInput("there is something already", where=str(output), hint="name a folder that does not exist")
    version = get_version(Registry.open(load_settings()), wanted.dataset)
    used = {f for d in wanted.documents for t in (d.input, d.target or "") for f in parse(t).fields}
    if missing := sorted(used - set(version.fields)):
        raise BadInput(
            f"{version.ref} has no field {', '.join(missing)}",
            where=str(recipe),
            hint=f"its fields: {', '.join(version.fields)}",
        )
    spec = {"recipe": wanted.model_dump(mode="json"), "dataset": str(version.path), "output": str(output.absolute())}
    with program("orchestrator.training.pretrain", spec) as process:
        pass
    if process.returncode:
        raise typer.Exit(1)
    typer.echo(str(output))
