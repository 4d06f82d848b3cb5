"""`ptq dataset add`: read every row, check it, keep the rows as a version."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.common import Json, words
from orchestrator.cli.dataset_derive import Licence, Origin, Tags
from orchestrator.cli.dataset_look import leaks_of, splits_of
from orchestrator.cli.output.render import note, print_json, progress, say
from orchestrator.errors import BadInput

if TYPE_CHECKING:
    from orchestrator.data.rows import ReadOptions
    from orchestrator.data.splits import SplitPlan
    from orchestrator.data.staging import Staged
    from orchestrator.registry.datasets import DatasetVersion, Notes

Name = Annotated[str, typer.Argument(help="The dataset's name; adding other rows to it makes a new version.")]
Sources = Annotated[
    list[str] | None,
    typer.Argument(metavar="SOURCE...", help="Files, or one dataset of the hub: hub:ORG/NAME[:CONFIG][@REVISION]."),
]
Train = Annotated[list[Path] | None, typer.Option(metavar="FILE", help="File of the split train; repeatable.")]
Validation = Annotated[list[Path] | None, typer.Option(metavar="FILE", help="File of the split validation.")]
Test = Annotated[list[Path] | None, typer.Option(metavar="FILE", help="File of the split test.")]
Split = Annotated[
    str | None, typer.Option(metavar="A/B[/C]", help="Divide SOURCE into train/validation[/test], e.g. 0.9/0.1.")
]
Seed = Annotated[int, typer.Option(help="Decides with --split which row goes where.")]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="F",
        help="csv, tsv, jsonl, json, parquet, text or delimited; else by the suffix. superglue-copa, -multirc, -record "
        "and -wsc read SuperGLUE's own files, one row a question.",
    ),
]
Delimiter = Annotated[str | None, typer.Option(help="Between columns, e.g. '||'; '\\t' is a tab.")]
Columns = Annotated[str | None, typer.Option(metavar="A,B", help="Names of the columns, for files without a header.")]
Header = Annotated[
    bool | None,
    typer.Option("--header/--no-header", help="Whether the first line holds names; default: without --columns."),
]
SplitFirst = Annotated[
    bool, typer.Option("--split-first", help="The last column takes the rest of the line, delimiters and all.")
]
Strip = Annotated[bool, typer.Option("--strip", help="Remove white space at both ends of every value.")]
Keep = Annotated[list[str] | None, typer.Option(metavar="A,B", help="Keep only these fields.")]
Required = Annotated[list[str] | None, typer.Option(metavar="A,B", help="Fields that must not be empty; default: all.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Set bad rows aside instead of refusing; see them with `show --bad`.")
]


def add(
    name: Name,
    sources: Sources = None,
    train: Train = None,
    validation: Validation = None,
    test: Test = None,
    split: Split = None,
    seed: Seed = 0,
    format_: Format = None,
    delimiter: Delimiter = None,
    columns: Columns = None,
    header: Header = None,
    split_first: SplitFirst = False,
    strip: Strip = False,
    keep: Keep = None,
    required: Required = None,
    skip_bad: SkipBad = False,
    licence: Licence = None,
    origin: Origin = None,
    tag: Tags = None,
    json: Json = False,
) -> None:
    """Read every row, check it, and keep the rows as a version that never changes."""
    from orchestrator.data.rows import ReadOptions
    from orchestrator.registry.datasets import Notes, check_tags
    from orchestrator.registry.names import check_name

    check_name(name, "dataset")
    tab = None if delimiter is None else delimiter.replace("\\t", "\t")
    named, needed = words([columns] if columns else None), None if required is None else words(required)
    options = ReadOptions(format_, tab, named, header, split_first, strip, words(keep), needed, skip_bad)
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
        fetched = fetch(source, Path(folder))
        splits = fetched.files
        if request.plan and len(splits) > 1:
            raise BadInput(
                f"{source.id} has splits already: {', '.join(splits)}", where="--split", hint="leave --split out"
            )
        labels = {path: f"{request.hub}:{split}" for split, path in splits.items()}
        origin = {
            "hub": {**vars(source), "commit": fetched.commit},
            "options": {"keep": options.keep, "required": options.required},
        }
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
    say(f"  splits  {splits_of(version)}")
    say(f"  fields  {', '.join(version.fields)}")
    say(f"  digest  {version.digest}")
    if staged.duplicates:
        repeat = "row repeats" if staged.duplicates == 1 else "rows repeat"
        note(f"{staged.duplicates:,} {repeat} an earlier row of their split")
    for line in leaks_of(staged.statistics):
        note(" ".join(line.replace("leak", "leak:", 1).split()))
    if staged.bad_rows:
        note(f"{staged.bad_rows:,} bad rows were set aside: `ptq dataset show {version.ref} --bad`")
    if request.only_train:
        note("all rows are in the split train; for another one: --validation FILE, or --split 0.9/0.1")
