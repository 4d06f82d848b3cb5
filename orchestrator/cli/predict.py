"""`ptq predict`: use an artifact on new rows."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.programs import pipe_of, program
from orchestrator.errors import BadData, BadInput, NotFound
from orchestrator.paths import read_json
from orchestrator.settings import load_settings

if TYPE_CHECKING:
    from orchestrator.registry.artifacts import Artifact
    from orchestrator.registry.engine import Registry

_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")


def register(app: typer.Typer) -> None:
    app.command("predict")(predict)


def predict(
    artifact: Annotated[
        str,
        typer.Argument(metavar="ARTIFACT", help="a12, a job id, or the start of a digest (see `ptq artifact list`)"),
    ],
    input: Annotated[
        str,
        typer.Option(
            "--input",
            "-i",
            metavar="FILE|-",
            help="rows: .jsonl, .csv, .tsv, .parquet, .txt; - reads JSON lines (or plain lines) from standard input",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="write here instead of standard output")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines: the row's fields and `prediction`")] = False,
) -> None:
    """Predict with a trained prompt: one line for each input row, in the same order."""
    from orchestrator.recipe.schema import JobRecipe
    from orchestrator.registry.artifacts import get_artifact
    from orchestrator.registry.engine import Registry
    from orchestrator.tasks.template import parse

    registry = Registry.open(load_settings())
    found = get_artifact(registry, artifact)
    fields = list(parse(JobRecipe.model_validate(read_json(found.path / "artifact.json")["recipe"]).task.input).fields)
    rows = list(_stdin_rows(fields)) if input == "-" else list(_file_rows(Path(input), fields))
    if not rows:
        where = "standard input" if input == "-" else input
        raise BadData("there are no rows to predict", where=where, hint="one row a line")
    spec = {"artifact": str(found.path), "base": _base_folder(registry, found)}
    _refuse_unwritable(output)
    with ExitStack() as stack:
        target = stack.enter_context(NamedTemporaryFile("w+", encoding="utf-8")) if output else sys.stdout
        process = stack.enter_context(
            program("orchestrator.training.predict", spec, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        _feed(process, rows)
        for line in pipe_of(process.stdout):
            target.write(line if as_json else _one_line(json.loads(line)["prediction"]))
        if process.wait():
            raise typer.Exit(process.returncode)
        if output:  # written at the end: a failure leaves what was there
            target.seek(0)
            with output.open("w", encoding="utf-8") as file:
                shutil.copyfileobj(target, file)


def _feed(process: subprocess.Popen[str], rows: list[dict[str, str]]) -> None:
    """Write the rows from a thread of its own: the program answers batch by batch while it reads."""

    def write() -> None:
        # A broken pipe: the program has ended; its exit code says why.
        with contextlib.suppress(BrokenPipeError), pipe_of(process.stdin) as pipe:
            pipe.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    threading.Thread(target=write, daemon=True).start()


def _refuse_unwritable(output: Path | None) -> None:
    if output is None:
        return
    if output.is_dir():
        raise BadInput("is a folder", where=str(output), hint="name a file")
    if not output.absolute().parent.is_dir():
        raise NotFound("there is no such folder", where=str(output.parent), hint=f"make it: `mkdir -p {output.parent}`")


def _file_rows(path: Path, fields: list[str]) -> Iterator[dict[str, str]]:
    from orchestrator.data.readers import read_file
    from orchestrator.data.rows import Fault, ReadOptions, text_of

    if path.is_dir():
        raise BadInput("is a folder", where=str(path), hint="name a file of rows, or - for standard input")
    if not path.exists():
        raise NotFound("there is no such file", where=str(path), hint="name a file of rows, or - for standard input")
    if path.suffix.lower() not in _SUFFIXES:
        hint = f"name it {', '.join(_SUFFIXES)}, or pipe JSON lines: --input -"
        raise BadInput(f"the suffix {path.suffix!r} does not tell the format", where=str(path), hint=hint)
    plain = path.suffix.lower() == ".txt" and len(fields) == 1
    for record in read_file(path, ReadOptions(), lambda _: None):
        if isinstance(record, Fault):
            raise BadData(record.reason, where=f"{path}:{record.line}", hint="mend the row; nothing was predicted")
        names = fields if plain else record.names
        row = dict(zip(names, map(text_of, record.values), strict=False))
        yield _checked(row, fields, f"{path}:{record.line}")


def _stdin_rows(fields: list[str]) -> Iterator[dict[str, str]]:
    """JSON objects, one a line; plain lines where the artifact reads a single field."""
    for number, line in enumerate(_lines(sys.stdin), start=1):
        where = f"standard input, line {number}"
        row = _json_object(line)
        if row is None and len(fields) != 1:
            raise BadData(
                "not a JSON object", where=where, hint=f"write one a line, with the fields {', '.join(fields)}"
            )
        yield _checked({fields[0]: line} if row is None else row, fields, where)


def _lines(stream: IO[str]) -> Iterator[str]:
    try:
        for line in stream:
            if text := line.rstrip("\r\n"):
                yield text
    except UnicodeDecodeError as error:
        hint = "convert it: `iconv -f LATIN1 -t UTF-8`"
        raise BadData(
            f"not UTF-8 (byte 0x{error.object[error.start]:02x})", where="standard input", hint=hint
        ) from error


def _json_object(line: str) -> dict[str, str] | None:
    try:
        value: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    return {key: part if isinstance(part, str) else json.dumps(part, ensure_ascii=False) for key, part in value.items()}


def _checked(row: dict[str, str], fields: list[str], where: str) -> dict[str, str]:
    missing = [name for name in fields if name not in row]
    if missing:
        have = ", ".join(row) or "none"
        raise BadData(
            f"the row lacks {', '.join(missing)}",
            where=where,
            hint=f"the artifact reads {', '.join(fields)}; the row has {have}",
        )
    return row


def _one_line(text: str) -> str:
    return " ".join(text.splitlines()) + "\n"


def _base_folder(registry: Registry, artifact: Artifact) -> str:
    from orchestrator.registry.bases import base_folder
    from orchestrator.registry.jobs import get_job

    if artifact.job_id is None:
        return str(base_folder(registry, artifact.summary["base"]))
    with registry.read() as connection:
        folder = str(get_job(connection, artifact.job_id).base["path"])
    if not Path(folder).is_dir():
        raise BadInput(
            "the base that this artifact was trained on is not there any more",
            where=folder,
            hint="put it back, or train again on a base that is here",
        )
    return folder
