"""`ptq dataset derive`, `diff`, `note`, `export`, and what `show` says of a version's contents."""

from __future__ import annotations

import json as jsonlib
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.common import Json, words
from orchestrator.cli.output.render import note as tell
from orchestrator.cli.output.render import number, print_json, say, table
from orchestrator.errors import BadInput, NotFound

if TYPE_CHECKING:
    from orchestrator.registry.datasets import DatasetVersion
    from orchestrator.registry.storage.engine import Registry

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
    registry = _registry()
    version = get_version(registry, parent)
    notes = Notes(licence or version.licence, origin or version.origin, tuple(tag or ()))
    made = make(registry, version, name, operation, notes, user=registry.settings.user, now=time.time())
    if json:
        print_json(made.as_json())
        return
    rows = sum(made.splits.values())
    say(f"{made.ref}: {rows:,} rows of {version.ref}'s {sum(version.splits.values()):,}, {in_words(operation)}")
    for line in _leaks(made):
        say(line)


def diff(
    old: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")],
    new: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")],
    json: Json = False,
) -> None:
    """Show which rows came and went between two versions. Exit code 1 when there are any."""
    from orchestrator.registry.datasets import get_version
    from orchestrator.registry.derive import difference

    registry = _registry()
    left, right = get_version(registry, old), get_version(registry, new)
    found = difference(left, right)
    if json:
        print_json(found)
    else:
        _tell_difference(left, right, found)
    if left.digest != right.digest:
        raise typer.Exit(1)


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

    registry = _registry()
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

    version = get_version(_registry(), ref)
    if output.exists():
        raise BadInput("already exists", where=str(output), hint="name a folder that does not exist yet")
    if not output.absolute().parent.is_dir():
        raise NotFound("there is no such folder", where=str(output.parent))
    if format_ is Format.DATASETS:
        _run("orchestrator.training.dataset_out", {"dataset": str(version.path), "out": str(output.absolute())})
    else:
        from orchestrator.data.export import export_rows

        export_rows(version.path, version.fields, list(version.splits), output, format_)
    say(str(output))


def count_tokens(registry: Registry, version: DatasetVersion, base: str) -> DatasetVersion:
    """Count with the base's tokenizer, unless that was done before; kept with the version."""
    from orchestrator.registry.bases import get_base
    from orchestrator.registry.datasets import keep_tokens

    known = get_base(registry, base)
    if base in (version.statistics or {}).get("tokens", {}):
        return version
    request = {"dataset": str(version.path), "base": str(known.path), "splits": list(version.splits)}
    return keep_tokens(registry, version, base, jsonlib.loads(_run("orchestrator.training.count_tokens", request)))


def statistics_lines(version: DatasetVersion) -> Iterator[str]:
    """What stands below the facts of `ptq dataset show`."""
    found = version.statistics
    if not found:
        return
    yield from _leaks(version)
    for split, rows in found.get("duplicates", {}).items():
        yield f"repeated  {rows:,} rows of {split} stand there before"
    for field, size in found.get("characters", {}).items():
        yield f"length    {field}: {number(float(size['mean']))} characters, {size['most']:,} at most"
    for field, splits in found.get("values", {}).items():
        if sum(len(counts) for counts in splits.values()) > 1:
            yield from (f"values    {field} in {split}: {_balance(counts)}" for split, counts in splits.items())
    for base, fields in found.get("tokens", {}).items():
        for field, counts in fields.items():
            spread = f"median {counts['median']:,}, 95% up to {counts['p95']:,}, most {counts['most']:,}"
            yield f"tokens    {field} with {base}: {counts['total']:,}; a row: {spread}"


def in_words(operation: dict[str, Any]) -> str:
    """An operation as `ptq dataset derive` takes it."""
    do = operation.get("do")
    if do == "filter":
        return f"where {operation['where']}"
    if do == "sample":
        return f"{operation['rows']:,} of {operation['split']} at random (seed {operation['seed']})"
    if do == "split":
        return f"divided {'/'.join(f'{part:g}' for part in operation['fractions'])} (seed {operation['seed']})"
    return f"with {', '.join(operation.get('fields', {}))} from templates"


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


def _tell_difference(left: DatasetVersion, right: DatasetVersion, found: dict[str, Any]) -> None:
    if left.digest == right.digest:
        say(f"{left.ref} and {right.ref}: the same rows")
        return
    for what in ("fields", "splits"):
        for sign, names in (("-", found[what]["removed"]), ("+", found[what]["added"])):
            if names:
                say(f"{sign} {what}: {', '.join(names)}")
    rows = [[one["split"], one["same"], one["removed"], one["added"], "another order" if one["moved"] else ""]
            for one in found["rows"]]  # fmt: skip
    if rows:
        table(["split", "same", "removed", "added", ""], rows, right=("same", "removed", "added"))
    for one in found["rows"]:
        for sign, examples in (("-", one["removed_rows"]), ("+", one["added_rows"])):
            for example in examples:
                say(f"{sign} {one['split']}: {_short(example)}")


def _short(row: dict[str, str]) -> str:
    text = jsonlib.dumps(row, ensure_ascii=False)
    return text if len(text) <= 160 else f"{text[:159]}…"


def _leaks(version: DatasetVersion) -> Iterator[str]:
    for leak in (version.statistics or {}).get("shared", []):
        yield f"leak      {leak['rows']:,} rows of {leak['split']} stand in {leak['with']} too"


def _balance(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    parts = [f"{value or '(empty)'} {100 * rows / total:.0f}%" for value, rows in list(counts.items())[:8]]
    return ", ".join(parts) + (f" and {len(counts) - 8} more" if len(counts) > 8 else "")


def _run(module: str, request: dict[str, Any]) -> str:
    """Run a program of the tensor tower; what it printed."""
    import subprocess

    from orchestrator.cli.programs import pipe_of, program

    tell("counting" if module.endswith("count_tokens") else "writing")
    with program(module, request, stdout=subprocess.PIPE) as process:
        text = pipe_of(process.stdout).read()
    if process.returncode:
        raise typer.Exit(process.returncode)
    return text


def _registry() -> Registry:
    from orchestrator.registry.storage.engine import Registry
    from orchestrator.settings import load_settings

    return Registry.open(load_settings())
