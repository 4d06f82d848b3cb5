"""`ptq recipe`: list, show, check and copy recipes, and print the schema that editors use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.common import Json
from orchestrator.cli.complete import complete_names, complete_recipes
from orchestrator.cli.output.render import note, print_json, say, table
from orchestrator.errors import BadInput, NotFound, PtqError

if TYPE_CHECKING:
    from orchestrator.recipe.shipped import ShippedRecipe


def register(app: typer.Typer) -> None:
    """Add `ptq recipe`."""
    verbs = typer.Typer(help="List, show, check and copy recipes.", no_args_is_help=True, rich_markup_mode=None)
    verbs.command("list")(list_recipes)
    verbs.command("show")(show)
    verbs.command("check")(check)
    verbs.command("schema")(schema)
    verbs.command("copy")(copy)
    app.add_typer(verbs, name="recipe")


def list_recipes(json: Json = False) -> None:
    """List the recipes that come with ptq."""
    from orchestrator.recipe.shipped import shipped_recipes

    recipes = shipped_recipes()
    if json:
        print_json([_facts(recipe) for recipe in recipes])
        return
    table(["recipe", "purpose"], [(recipe.name, recipe.purpose) for recipe in recipes])


def show(
    name: Annotated[
        str, typer.Argument(help="A name from `ptq recipe list`, or a file.", autocompletion=complete_names)
    ],
    json: Json = False,
) -> None:
    """Print a recipe."""
    from orchestrator.recipe.document import read_document
    from orchestrator.recipe.shipped import find_shipped

    path = Path(name) if Path(name).is_file() else find_shipped(name).path
    source, document = read_document(path)
    if json:
        print_json({"name": name, "path": str(path), "source": source, "recipe": document.data})
    else:
        say(source.rstrip("\n"))


def check(
    files: Annotated[
        list[Path], typer.Argument(help="Recipe files.", metavar="FILE...", autocompletion=complete_recipes)
    ],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value over the file's, for example train.lr=1e-3.")
    ] = None,
    json: Json = False,
) -> None:
    """Check recipes: every fault with its file and line, or how many jobs they make. Exit code 2 with faults."""
    results = [_check(path, set_ or []) for path in files]
    if json:
        print_json([result for result, _ in results])
    else:
        for result, _ in results:
            _print_result(result)
    code = max((code for _, code in results), default=0, key=_PRECEDENCE.index)
    if code:
        raise typer.Exit(code)


def schema() -> None:
    """Print the JSON Schema of recipes."""
    from orchestrator.recipe.schema import recipe_schema

    print_json(recipe_schema())


def copy(
    name: Annotated[str, typer.Argument(help="A name from `ptq recipe list`.", autocompletion=complete_names)],
    destination: Annotated[Path | None, typer.Argument(help="A file or folder; default: the current folder.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there already.")] = False,
) -> None:
    """Copy a recipe that comes with ptq, to edit it."""
    from orchestrator.paths import write_atomic
    from orchestrator.recipe.shipped import copy_text, find_shipped

    recipe = find_shipped(name)
    target = Path() if destination is None else destination
    if target.is_dir():
        target = target / recipe.path.name
    if not target.parent.is_dir():
        raise NotFound("there is no such folder", where=str(target.parent))
    if target.exists() and not force:
        raise BadInput("is there already", where=str(target), hint=f"ptq recipe copy {name} OTHER_FILE, or add --force")
    write_atomic(target, copy_text(recipe, target))
    say(str(target))
    note(f"edit it, then: ptq recipe check {target}")


_PRECEDENCE = (0, 3, 2)  # a faulty file says more than a missing one


def _check(path: Path, overrides: list[str]) -> tuple[dict[str, Any], int]:
    """What `--json` prints for one file, and its exit code."""
    from orchestrator.recipe.faults import RecipeFaults

    facts: dict[str, Any] = {"file": str(path), "valid": False, "jobs": [], "faults": []}
    try:
        return {**facts, "valid": True, "jobs": _jobs(path, overrides)}, 0
    except RecipeFaults as error:
        faults = [{"where": f.where, "key": f.key, "message": f.message, "text": str(f)} for f in error.faults]
        return {**facts, "faults": faults}, error.exit_code
    except PtqError as error:
        fault = {"where": error.where, "key": "", "message": error.message, "text": str(error)}
        return {**facts, "faults": [fault]}, error.exit_code


def _jobs(path: Path, overrides: list[str]) -> list[str]:
    """Names of the jobs that a file makes; a base to pretrain is one."""
    from orchestrator.recipe.document import read_document
    from orchestrator.recipe.expand import expand
    from orchestrator.recipe.load import load_model, load_recipe
    from orchestrator.recipe.pretrain import PretrainRecipe

    if "pretrain" in read_document(path)[1].data:
        return [load_model(path, PretrainRecipe, overrides).pretrain]
    return [job.name for job in expand(load_recipe(path, overrides).recipe)]


def _print_result(result: dict[str, Any]) -> None:
    for fault in result["faults"]:
        note(fault["text"])
    if result["valid"]:
        jobs = result["jobs"]
        say(f"{result['file']}: fine, makes {len(jobs)} job{'' if len(jobs) == 1 else 's'}")


def _facts(recipe: ShippedRecipe) -> dict[str, str]:
    return {"name": recipe.name, "path": str(recipe.path), "kind": recipe.kind, "purpose": recipe.purpose}
