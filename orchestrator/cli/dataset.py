"""`ptq dataset`: add, list, show and verify datasets; dataset_more.py holds the other verbs."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli import dataset_more
from orchestrator.cli.common import Json, when, words
from orchestrator.cli.output.render import note, print_json, progress, say, table
from orchestrator.errors import BadInput, NotFound

if TYPE_CHECKING:
    from orchestrator.data.rows import ReadOptions
    from orchestrator.data.splits import SplitPlan
    from orchestrator.data.staging import Staged
    from orchestrator.registry.datasets import DatasetVersion, Notes
    from orchestrator.registry.storage.engine import Registry

_SHOWN_CHARACTERS = 200


def register(app: typer.Typer) -> None:
    """Add `ptq dataset`."""
    verbs = typer.Typer(
        help="Add, list, show, verify, derive and compare datasets.", no_args_is_help=True, rich_markup_mode=None
    )
    verbs.command("add")(add)
    verbs.command("list")(list_datasets)
    verbs.command("show")(show)
    verbs.command("verify")(verify)
    verbs.command("derive")(dataset_more.derive)
    verbs.command("diff")(dataset_more.diff)
    verbs.command("note")(dataset_more.note_)
    verbs.command("export")(dataset_more.export)
    app.add_typer(verbs, name="dataset")


def add(
    name: Annotated[str, typer.Argument(help="The dataset's name; adding other rows to it makes a new version.")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE...", help="Files, or one dataset of the hub: hub:ORG/NAME[:CONFIG][@REVISION]."),
    ] = None,
    train: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="File of the split train; repeatable.")
    ] = None,
    validation: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="File of the split validation.")] = None,
    test: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="File of the split test.")] = None,
    split: Annotated[
        str | None, typer.Option(metavar="A/B[/C]", help="Divide SOURCE into train/validation[/test], e.g. 0.9/0.1.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides with --split which row goes where.")] = 0,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="F", help="csv, tsv, jsonl, json, parquet, text or delimited; else by the suffix."
        ),
    ] = None,
    delimiter: Annotated[str | None, typer.Option(help="Between columns, e.g. '||'; '\\t' is a tab.")] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="A,B", help="Names of the columns, for files without a header.")
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option("--header/--no-header", help="Whether the first line holds names; default: without --columns."),
    ] = None,
    split_first: Annotated[
        bool, typer.Option("--split-first", help="The last column takes the rest of the line, delimiters and all.")
    ] = False,
    strip: Annotated[bool, typer.Option("--strip", help="Remove white space at both ends of every value.")] = False,
    keep: Annotated[list[str] | None, typer.Option(metavar="A,B", help="Keep only these fields.")] = None,
    required: Annotated[
        list[str] | None, typer.Option(metavar="A,B", help="Fields that must not be empty; default: all.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Set bad rows aside instead of refusing; see them with `show --bad`.")
    ] = False,
    licence: dataset_more.Licence = None,
    origin: dataset_more.Origin = None,
    tag: dataset_more.Tags = None,
    json: Json = False,
) -> None:
    """Read every row, check it, and keep the rows as a version that never changes."""
    from orchestrator.data.rows import ReadOptions
    from orchestrator.registry.datasets import Notes, check_tags
    from orchestrator.registry.names import check_name

    check_name(name, "dataset")
    options = ReadOptions(
        format=format_,
        delimiter=None if delimiter is None else delimiter.replace("\\t", "\t"),
        columns=words([columns] if columns else None),
        header=header,
        split_first=split_first,
        strip=strip,
        keep=words(keep),
        required=None if required is None else words(required),
        skip_bad=skip_bad,
    )
    given = {"train": train, "validation": validation, "test": test}
    request = _request(sources or [], {key: paths for key, paths in given.items() if paths}, split, seed)
    notes = Notes(licence, origin, tuple(tag or ()))
    check_tags(notes.tags)
    _add(name, request, options, notes, json)


@dataclass(frozen=True)
class _Request:
    """What is to be read: files by split, or a dataset of the hub."""

    files: dict[str, list[Path]]
    hub: str | None
    plan: SplitPlan | None
    only_train: bool


def _request(sources: list[str], files: dict[str, list[Path]], split: str | None, seed: int) -> _Request:
    from orchestrator.data.hub import is_saved_folder
    from orchestrator.data.splits import parse_split

    plan = None if split is None else parse_split(split, seed)
    hub = next((source for source in sources if source.startswith("hub:") or is_saved_folder(source)), None)
    if hub and (len(sources) > 1 or files):
        raise BadInput("a dataset of the hub comes alone, with its own splits", where=hub)
    if not sources and not files:
        raise BadInput(
            "nothing to read", hint="name files: `ptq dataset add NAME FILE…`, or --train, --validation, --test"
        )
    if plan and files:
        raise BadInput(
            "--split divides SOURCE; --train, --validation and --test name the splits themselves", where="--split"
        )
    if sources and "train" in files:
        raise BadInput("SOURCE is the split train, and so is --train", hint="give one of the two")
    if hub:
        return _Request({}, hub, plan, only_train=False)
    if sources:
        files = {"train": [Path(source) for source in sources], **files}
    return _Request(files, None, plan, only_train=plan is None and list(files) == ["train"] and bool(sources))


def _add(name: str, request: _Request, options: ReadOptions, notes: Notes, json: bool) -> None:
    from orchestrator.data.staging import stage
    from orchestrator.registry.datasets import add_version
    from orchestrator.registry.storage.engine import Registry
    from orchestrator.settings import load_settings

    settings = load_settings()
    registry = Registry.open(settings, create=True)
    with _read_from(request, options) as (files, options, labels, origin):
        total = sum(path.stat().st_size for paths in files.values() for path in paths if path.is_file())
        with (
            _bar(f"reading {name}", total, quiet=json) as advance,
            stage(
                registry.paths, files, options, plan=request.plan, labels=labels, source=origin, advance=advance
            ) as staged,
        ):
            now = time.time()
            version = add_version(registry, name, staged, user=settings.user, now=now, notes=notes)
    _report(version, staged, new=version.created_at == now, request=request, json=json)


_Reading = tuple[dict[str, list[Path]], "ReadOptions", dict[Path, str], "dict[str, Any] | None"]


@contextlib.contextmanager
def _read_from(request: _Request, options: ReadOptions) -> Iterator[_Reading]:
    """(files, options, names for messages, origin); a dataset of the hub lies in a temporary folder meanwhile."""
    from orchestrator.data.hub import fetch, parse_hub_source

    source = parse_hub_source(request.hub) if request.hub else None
    if source is None:
        yield request.files, options, {}, None
        return
    with tempfile.TemporaryDirectory(prefix="ptq-hub-") as folder:
        note(f"reading {source.id}" if Path(source.id).is_absolute() else f"asking the hub for {source.id}")
        splits = fetch(source, Path(folder))
        if request.plan and len(splits) > 1:
            raise BadInput(
                f"{source.id} has splits already: {', '.join(splits)}", where="--split", hint="leave --split out"
            )
        labels = {path: f"{request.hub}:{split}" for split, path in splits.items()}
        origin = {"hub": vars(source), "options": {"keep": options.keep, "required": options.required}}
        yield {split: [path] for split, path in splits.items()}, replace(options, format="jsonl"), labels, origin


@contextlib.contextmanager
def _bar(title: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Progress in megabytes; files of a few megabytes are read before a bar could be looked at."""
    if quiet or total < 5_000_000:
        yield lambda _bytes: None
        return
    done = 0
    with progress(f"{title} (MB)") as told:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            told(done // 1_000_000, total // 1_000_000)

        yield advance


def _report(version: DatasetVersion, staged: Staged, *, new: bool, request: _Request, json: bool) -> None:
    if json:
        print_json(
            {**version.as_json(), "new": new, "duplicates": staged.duplicates, "shared": staged.shared}
            | {"bad_rows": staged.bad_rows}
        )
        return
    rows = sum(version.splits.values())
    state = "" if new else " (these rows were there already; nothing was added)"
    say(f"{version.ref}: {rows:,} rows{state}")
    say(f"  splits  {_splits(version)}")
    say(f"  fields  {', '.join(version.fields)}")
    say(f"  digest  {version.digest}")
    if staged.duplicates:
        note(f"{staged.duplicates:,} rows repeat an earlier row of their split")
    for leak in (staged.statistics or {}).get("shared", []):
        note(f"leak: {leak['rows']:,} rows of {leak['split']} stand in {leak['with']} too")
    if staged.bad_rows:
        note(f"{staged.bad_rows:,} bad rows were set aside: `ptq dataset show {version.ref} --bad`")
    if request.only_train:
        note("all rows are in the split train; for another one: --validation FILE, or --split 0.9/0.1")


def list_datasets(
    tag: Annotated[str | None, typer.Option("--tag", help="Only versions with this tag.")] = None,
    json: Json = False,
) -> None:
    """List all datasets and their versions."""
    from orchestrator.registry.datasets import list_versions

    versions = [version for version in list_versions(_registry()) if tag is None or tag in version.tags]
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
                _splits(version),
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

    registry = _registry()
    version = get_version(registry, ref)
    if split is not None and split not in version.splits:
        raise NotFound(f"{version.ref} has no split {split!r}", hint=f"it has: {', '.join(version.splits)}")
    if bad:
        aside = bad_rows(version.path)
        _show_bad(version, aside, json)
        return
    if tokens is not None:
        version = dataset_more.count_tokens(registry, version, tokens)
    heads = {name: _head(version, name, rows) for name in version.splits if split in (None, name)}
    if json:
        print_json({**version.as_json(), "rows": heads})
        return
    _show_facts(version)
    for name, head in heads.items():
        for number, row in enumerate(head, start=1):
            say(f"\n{name} {number}")
            for field, value in row.items():
                say(f"  {field}: {_shortened(value)}")


def verify(
    refs: Annotated[list[str] | None, typer.Argument(metavar="[NAME[@VERSION]...]", help="Default: all.")] = None,
    json: Json = False,
) -> None:
    """Read every file and every row again and compare the hashes. Exit code 1 when something does not hold."""
    from orchestrator.registry import datasets

    registry = _registry()
    versions = [datasets.get_version(registry, ref) for ref in refs] if refs else datasets.list_versions(registry)
    found = {version.ref: datasets.verify(version) for version in versions}
    if json:
        print_json([{"ref": ref, "faults": faults} for ref, faults in found.items()])
    else:
        for ref, faults in found.items():
            say(f"{ref}: {'; '.join(faults) or 'whole'}")
    if any(found.values()):
        raise typer.Exit(1)


def _registry() -> Registry:
    from orchestrator.registry.storage.engine import Registry
    from orchestrator.settings import load_settings

    return Registry.open(load_settings())


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
        "splits": _splits(version),
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
    for line in dataset_more.statistics_lines(version):
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
        named = source["hub"]["id"]
        return named if Path(named).is_absolute() else f"hub:{named}"
    if "derived" in source:
        return f"{source['derived']['from']}, {dataset_more.in_words(source['derived']['operation'])}"
    if "bundle" in source:
        return f"bundle {source['bundle']}"
    return ", ".join(path for paths in source.get("files", {}).values() for path in paths)


def _splits(version: DatasetVersion) -> str:
    return ", ".join(f"{name} {rows:,}" for name, rows in version.splits.items())


def _shortened(text: str) -> str:
    line = " ".join(text.split("\n"))
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}… ({len(text):,} characters)"
