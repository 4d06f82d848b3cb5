"""`ptq dataset`: its verbs are in dataset_add.py, dataset_look.py and dataset_derive.py."""

from __future__ import annotations

import typer

from orchestrator.cli import dataset_add, dataset_derive, dataset_look


def register(app: typer.Typer) -> None:
    """Add `ptq dataset`."""
    verbs = typer.Typer(
        help="Add, list, show, verify, derive and compare datasets.", no_args_is_help=True, rich_markup_mode=None
    )
    verbs.command("add")(dataset_add.add)
    verbs.command("list")(dataset_look.list_datasets)
    verbs.command("show")(dataset_look.show)
    verbs.command("verify")(dataset_look.verify)
    verbs.command("derive")(dataset_derive.derive)
    verbs.command("diff")(dataset_look.diff)
    verbs.command("note")(dataset_derive.note_)
    verbs.command("export")(dataset_derive.export)
    app.add_typer(verbs, name="dataset")
