"""`ptq dataset derive`, `note` and `export`."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.common import Json, open_registry, words
from orchestrator.cli.dataset_look import in_words, leaks_of
from orchestrator.cli.dataset_programs import printed_by
from orchestrator.cli.output.render import print_json, say
from orchestrator.errors import BadInput, NotFound

Licence = Annotated[
    str | None, typer.Option("--licence", "--license", metavar="NAME", help="For example CC-BY-SA-4.0.")
]
Origin = Annotated[str | None, typer.Option("--origin", metavar="TEXT", help="Where the rows were published.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", metavar="WORD", help="A word to find it by; repeatable.")]


class Format(StrEnum):
    PARQUET = "parquet"
    JSONL = "jsonl"
    CSV = "csv"
    DATASETS = "datasets"


def derive(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the new dataset, or of one to add a version to.")],
    parent: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="What it is derived from.")],
    where: Annotated[
        str | None, typer.Option("--where", metavar="FILTER", help="Keep these rows: 'label=positive and text~film'.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option("--sample", metavar="N", min=1, help="Keep N random rows of the split --of.")
    ] = None,
    of: Annotated[str, typer.Option("--of", metavar="SPLIT", help="With --sample: other splits stay whole.")] = "train",
    split: Annotated[str | None, typer.Option("--split", metavar="A/B[/C]", help="Divide all rows anew.")] = None,
    seed: Annotated[int, typer.Option(help="Decides with --sample and --split which rows.")] = 0,
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="FIELD=TEMPLATE", help="Make a field: 'text={title}: {body}'; repeatable."),
    ] = None,
    keep: Annotated[list[str] | None, typer.Option(metavar="A,B", help="With --map: keep only these fields.")] = None,
    licence: Licence = None,
    origin: Origin = None,
    tag: Tags = None,
    json: Json = False,
) -> None:
    """Make a version from another one; which, and how, is kept with it."""
    from orchestrator.registry.datasets import Notes, get_version
    from orchestrator.registry.derive import derive as make
    from orchestrator.registry.names import check_name

    check_name(name, "dataset")
    operation = _operation(where, sample, of, split, seed, map_, keep)
    registry = open_registry()
    version = get_version(registry, parent)
    notes = Notes(licence or version.licence, origin or version.origin, tuple(tag or ()))
    made = make(registry, version, name, operation, notes, user=registry.settings.user, now=time.time())
    if json:
        print_json(made.as_json())
        return
    rows = sum(made.splits.values())
    say(f"{made.ref}: {rows:,} rows of {version.ref}'s {sum(version.splits.values()):,}, {in_words(operation)}")
    for line in leaks_of(made.statistics):
        say(line)


def note_(
    ref: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")],
    licence: Licence = None,
    origin: Origin = None,
    tag: Tags = None,
    untag: Annotated[list[str] | None, typer.Option("--untag", metavar="WORD", help="Take a tag away.")] = None,
    json: Json = False,
) -> None:
    """Change licence, origin and tags of a version; its rows never change."""
    from orchestrator.registry.datasets import Notes, annotate, get_version

    registry = open_registry()
    version = get_version(registry, ref)
    tags = [one for one in dict.fromkeys([*version.tags, *(tag or ())]) if one not in (untag or ())]
    kept = Notes(licence or version.licence, origin or version.origin, tuple(tags))
    changed = annotate(registry, version, kept)
    if json:
        print_json(changed.as_json())
    else:
        parts = {"licence": changed.licence, "origin": changed.origin, "tags": " ".join(changed.tags)}
        say(f"{changed.ref}: {', '.join(f'{key} {value}' for key, value in parts.items() if value) or 'no notes'}")


def export(
    ref: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="A folder to be made.")],
    format_: Annotated[
        Format, typer.Option("--format", help="datasets: a folder for `datasets.load_from_disk`.")
    ] = Format.PARQUET,
) -> None:
    """Write a version's rows for other tools, one file a split."""
    from orchestrator.registry.datasets import get_version

    version = get_version(open_registry(), ref)
    if output.exists():
        raise BadInput("already exists", where=str(output), hint="name a folder that does not exist yet")
    if not output.absolute().parent.is_dir():
        raise NotFound("there is no such folder", where=str(output.parent))
    if format_ is Format.DATASETS:
        printed_by("orchestrator.training.dataset_out", {"dataset": str(version.path), "out": str(output.absolute())})
    else:
        from orchestrator.data.export import export_rows

        export_rows(version.path, version.fields, list(version.splits), output, format_)
    say(str(output))


def _operation(
    where: str | None,
    sample: int | None,
    of: str,
    split: str | None,
    seed: int,
    map_: list[str] | None,
    keep: list[str] | None,
) -> dict[str, Any]:
    from orchestrator.data.splits import parse_split

    given = [
        name for name, value in {"--where": where, "--sample": sample, "--split": split, "--map": map_}.items() if value
    ]
    if len(given) != 1:
        what = f"{' and '.join(given)} together" if given else "nothing to do"
        raise BadInput(what, hint="give one of --where, --sample, --split and --map; derive again for the next step")
    if keep and not map_:
        raise BadInput("belongs to --map", where="--keep", hint="for example --map 'text={text}' --keep text,label")
    if where is not None:
        return {"do": "filter", "where": where}
    if sample is not None:
        return {"do": "sample", "split": of, "rows": sample, "seed": seed}
    if split is not None:
        plan = parse_split(split, seed)
        return {"do": "split", "fractions": list(plan.fractions), "seed": seed}
    fields = dict(_template(text) for text in map_ or ())
    return {"do": "map", "fields": fields, "keep": list(words(keep)) or None}


def _template(text: str) -> tuple[str, str]:
    field, equals, template = text.partition("=")
    if not equals or not field.strip():
        raise BadInput(
            f"{text!r} is not FIELD=TEMPLATE", where="--map", hint="for example --map 'text={title}: {body}'"
        )
    return field.strip(), template
