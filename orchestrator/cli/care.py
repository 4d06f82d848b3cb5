"""`ptq doctor`, `ptq gc`, `ptq backup` and `ptq restore`: looking after a registry."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.box import look_at_the_box, tell_box
from orchestrator.cli.common import Json, open_registry, size
from orchestrator.cli.output import render

if TYPE_CHECKING:
    from orchestrator.registry.care.doctor import Finding


def register(app: typer.Typer) -> None:
    for verb in (doctor, gc, backup, restore):
        app.command(verb.__name__)(verb)


def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended without a choice.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Hash no files.")] = False,
    json: Json = False,
) -> None:
    """Check the registry, its files, this box, and what torch sees of its GPUs. Exit code 1 when something is wrong."""
    from orchestrator.registry.care.doctor import examine

    registry = open_registry()
    with render.progress("checking") as advance:

        def told(done: int, total: int | None, _name: str) -> None:
            advance(done, total)  # elsewhere than on a terminal each name would be a line

        found = examine(registry, now=time.time(), hashes=not quick, fix=fix, advance=told)
    box = look_at_the_box(registry)
    bad = [one for one in found if one.fault and not one.fixed]
    if json:
        render.print_json(
            {"whole": not bad and not box["torch_fault"], "findings": [vars(one) for one in found], "box": box}
        )
    else:
        _tell(found, box)
    if bad or box["torch_fault"]:
        raise typer.Exit(1)


def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this nothing is changed.")] = False,
    json: Json = False,
) -> None:
    """Show (or with --yes remove) what lies in the store and nothing names."""
    from orchestrator.registry.care.gc import collect, find_garbage

    registry = open_registry()
    found = collect(registry, now=time.time()) if yes else find_garbage(registry, now=time.time())
    if json:
        items = [{**vars(one), "path": str(one.path)} for one in found]
        render.print_json({"removed": yes, "found": items})
        return
    if found:
        render.table(["folder", "size", "why"], [[one.path, size(one.bytes), one.why] for one in found])
    others = sorted({one.owner for one in found if one.owner})
    if others:
        render.note(f"of these some are {' and '.join(others)}'s, who can remove them alone")
    found = [one for one in found if not one.owner]
    total = size(sum(one.bytes for one in found))
    if yes:
        render.note(f"removed {total}" if found else "nothing to remove")
    else:
        render.note(f"{total} could go: `ptq gc --yes` removes it" if found else "nothing to remove")


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file to be made, for example ptq-2026-11-20.tar.")],
    json: Json = False,
) -> None:
    """Write the registry and its store into one file, while everything goes on running."""
    from orchestrator.registry.care.backup import write_backup

    made = write_backup(open_registry(), file, now=time.time())
    if json:
        render.print_json({**vars(made), "path": str(made.path)})
        return
    render.say(f"{made.path}: {size(made.bytes)}, the database and {made.folders:,} folders of the store")
    for folder in made.missing:
        render.note(f"not in it, because it is missing or damaged: {folder}; see `ptq doctor`")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `ptq backup` wrote.")],
) -> None:
    """Make a registry from a backup, in a PTQ_HOME that has none."""
    from orchestrator.errors import NotFound
    from orchestrator.registry.care.backup import restore as bring_back
    from orchestrator.settings import load_settings

    if not file.is_file():
        raise NotFound("there is no such file", where=str(file))
    settings = load_settings()
    again = bring_back(settings, file, now=time.time())
    render.say(f"{settings.home}: restored from {file}")
    if again:
        render.note(f"{again} jobs that were under way are queued again, from their beginning")
    render.note("bases are not in a backup; `ptq doctor` says which are missing")


def _tell(found: list[Finding], box: dict[str, Any]) -> None:
    for one in found:
        state = "mended" if one.fixed else "wrong" if one.fault else "note"
        render.say(f"{state}: {one.where}: {one.what}")
        if one.hint and not one.fixed:
            render.say(f"  {one.hint}")
    if not any(one.fault for one in found):
        render.say("the registry is whole")
    tell_box(box)
