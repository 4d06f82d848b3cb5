"""`ptq dataset list`, `show`, `verify` and `diff`."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.common import Json, open_registry, when
from orchestrator.cli.dataset_programs import printed_by
from orchestrator.cli.output.render import note, number, print_json, say, table
from orchestrator.errors import NotFound

if TYPE_CHECKING:
    from orchestrator.registry.datasets import DatasetVersion
    from orchestrator.registry.storage.engine import Registry

_SHOWN_CHARACTERS = 200


def list_datasets(
    tag: Annotated[str | None, typer.Option("--tag", help="Only versions with this tag.")] = None,
    json: Json = False,
) -> None:
    """List all datasets and their versions."""
    from orchestrator.registry.datasets import list_versions

    versions = [version for version in list_versions(open_registry()) if tag is None or tag in version.tags]
    if json:
        print_json([version.as_json() for version in versions])
        return
    if not versions:
        note("no datasets yet; add one with `ptq dataset add NAME FILE`")
        return
    table(
        ["dataset", "rows", "splits", "fields", "bad", "tags", "added", "by"],
        [
            [
                version.ref,
                f"{sum(version.splits.values()):,}",
                splits_of(version),
                ", ".join(version.fields),
                version.bad_rows or "",
                " ".join(version.tags),
                when(version.created_at),
                version.created_by,
            ]
            for version in versions
        ],
        right=["rows", "bad"],
    )


def show(
    ref: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")],
    rows: Annotated[int, typer.Option("--rows", "-n", min=0, help="Rows to show of each split.")] = 3,
    split: Annotated[str | None, typer.Option(help="Only this split.")] = None,
    bad: Annotated[bool, typer.Option("--bad", help="The rows that --skip-bad set aside.")] = False,
    tokens: Annotated[
        str | None, typer.Option("--tokens", metavar="BASE", help="Count the tokens of this base's tokenizer too.")
    ] = None,
    json: Json = False,
) -> None:
    """Show a version: what it is, where it came from, its first rows."""
    from orchestrator.data.layout import bad_rows
    from orchestrator.registry.datasets import get_version

    registry = open_registry()
    version = get_version(registry, ref)
    if split is not None and split not in version.splits:
        raise NotFound(f"{version.ref} has no split {split!r}", hint=f"it has: {', '.join(version.splits)}")
    if bad:
        aside = bad_rows(version.path)
        _show_bad(version, aside, json)
        return
    if tokens is not None:
        version = _count_tokens(registry, version, tokens)
    heads = {name: _head(version, name, rows) for name in version.splits if split in (None, name)}
    if json:
        print_json({**version.as_json(), "rows": heads})
        return
    _show_facts(version)
    for name, head in heads.items():
        for place, row in enumerate(head, start=1):
            say(f"\n{name} {place}")
            for field, value in row.items():
                say(f"  {field}: {_shortened(value)}")


def verify(
    refs: Annotated[list[str] | None, typer.Argument(metavar="[NAME[@VERSION]...]", help="Default: all.")] = None,
    json: Json = False,
) -> None:
    """Read every file and every row again and compare the hashes. Exit code 1 when something does not hold."""
    from orchestrator.registry import datasets

    registry = open_registry()
    versions = [datasets.get_version(registry, ref) for ref in refs] if refs else datasets.list_versions(registry)
    found = {version.ref: datasets.verify(version) for version in versions}
    if json:
        print_json([{"ref": ref, "faults": faults} for ref, faults in found.items()])
    else:
        for ref, faults in found.items():
            say(f"{ref}: {'; '.join(faults) or 'whole'}")
    if any(found.values()):
        raise typer.Exit(1)


def diff(
    old: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")],
    new: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")],
    json: Json = False,
) -> None:
    """Show which rows came and went between two versions. Exit code 1 when there are any."""
    from orchestrator.registry.datasets import get_version
    from orchestrator.registry.derive import difference

    registry = open_registry()
    left, right = get_version(registry, old), get_version(registry, new)
    found = difference(left, right)
    if json:
        print_json(found)
    else:
        _tell_difference(left, right, found)
    if left.digest != right.digest:
        raise typer.Exit(1)


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


def splits_of(version: DatasetVersion) -> str:
    return ", ".join(f"{name} {rows:,}" for name, rows in version.splits.items())


def leaks_of(statistics: dict[str, Any] | None) -> Iterator[str]:
    for leak in (statistics or {}).get("shared", []):
        rows, stand = ("row", "stands") if leak["rows"] == 1 else ("rows", "stand")
        yield f"leak      {leak['rows']:,} {rows} of {leak['split']} {stand} in {leak['with']} too"


def _count_tokens(registry: Registry, version: DatasetVersion, base: str) -> DatasetVersion:
    """Count with the base's tokenizer, unless that was done before; kept with the version."""
    from orchestrator.registry.bases import get_base
    from orchestrator.registry.datasets import keep_tokens

    known = get_base(registry, base)
    if base in (version.statistics or {}).get("tokens", {}):
        return version
    request = {"dataset": str(version.path), "base": str(known.path), "splits": list(version.splits)}
    return keep_tokens(
        registry, version, base, jsonlib.loads(printed_by("orchestrator.training.count_tokens", request))
    )


def _statistics_lines(version: DatasetVersion) -> Iterator[str]:
    """What stands below the facts of `ptq dataset show`."""
    found = version.statistics
    if not found:
        return
    yield from leaks_of(version.statistics)
    for split, rows in found.get("duplicates", {}).items():
        what = "row that stands" if rows == 1 else "rows that stand"
        yield f"repeated  {rows:,} {what} in {split} before"
    for field, size in found.get("characters", {}).items():
        yield f"length    {field}: {number(float(size['mean']))} characters, {size['most']:,} at most"
    for field, splits in found.get("values", {}).items():
        if sum(len(counts) for counts in splits.values()) > 1:
            yield from (f"values    {field} in {split}: {_balance(counts)}" for split, counts in splits.items())
    for base, fields in found.get("tokens", {}).items():
        for field, counts in fields.items():
            spread = f"median {counts['median']:,}, 95% up to {counts['p95']:,}, most {counts['most']:,}"
            yield f"tokens    {field} with {base}: {counts['total']:,}; a row: {spread}"


def _head(version: DatasetVersion, split: str, count: int) -> list[dict[str, str]]:
    from itertools import islice

    from orchestrator.data.store import DAMAGE, read_rows

    try:
        found = list(islice(read_rows(version.path, split), count))
    except DAMAGE as error:
        raise NotFound(
            f"the rows of {version.ref} cannot be read ({error})", hint=f"see `ptq dataset verify {version.ref}`"
        ) from error
    return [dict(zip(version.fields, values, strict=True)) for values in found]


def _show_facts(version: DatasetVersion) -> None:
    for name, value in {
        "dataset": version.ref,
        "splits": splits_of(version),
        "fields": ", ".join(version.fields),
        "digest": version.digest,
        "bad rows": f"{version.bad_rows:,} set aside" if version.bad_rows else "none",
        "source": _origin(version.source),
        "licence": version.licence or "",
        "origin": version.origin or "",
        "tags": " ".join(version.tags),
        "added": f"{when(version.created_at)} by {version.created_by}",
        "folder": version.path,
    }.items():
        if value != "":
            say(f"{name:9} {value}")
    for line in _statistics_lines(version):
        say(line)


def _show_bad(version: DatasetVersion, aside: list[dict[str, Any]], json: bool) -> None:
    if json:
        print_json(aside)
        return
    if not aside:
        note(f"no rows of {version.ref} were set aside")
    for row in aside:
        say(f"{row['file']}:{row['line']}: {row['reason']}")
        say(f"  {_shortened(row['raw'])}")


def _origin(source: dict[str, Any]) -> str:
    if "hub" in source:
        named, commit = source["hub"]["id"], source["hub"].get("commit")
        return named if Path(named).is_absolute() else f"hub:{named}" + (f" at {commit}" if commit else "")
    if "derived" in source:
        return f"{source['derived']['from']}, {in_words(source['derived']['operation'])}"
    if "bundle" in source:
        return f"bundle {source['bundle']}"
    return ", ".join(path for paths in source.get("files", {}).values() for path in paths)


def _shortened(text: str) -> str:
    line = " ".join(text.split("\n"))
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}… ({len(text):,} characters)"


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


def _balance(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    parts = [f"{value or '(empty)'} {100 * rows / total:.0f}%" for value, rows in list(counts.items())[:8]]
    return ", ".join(parts) + (f" and {len(counts) - 8} more" if len(counts) > 8 else "")
