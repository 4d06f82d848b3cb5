"""What `ptq predict` writes: lines, JSON lines or CSV; and the file in which unfinished predictions are kept."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from orchestrator.errors import BadInput, NotFound
from orchestrator.paths import file_written_atomically
from orchestrator.tasks.ensemble import likeliest, mean, vote, weighted

Shape = Literal["text", "json", "csv", "tsv"]
Answers = list[dict[str, Any]]  #: of a row: each artifact's {"text", "probabilities"}

_SHAPES: dict[str, Shape] = {".jsonl": "json", ".csv": "csv", ".tsv": "tsv"}
_FORMAT = 1


def shape_of(output: Path | None, *, as_json: bool, as_csv: bool) -> Shape:
    """As the options say, else as the file's name does."""
    if as_json and as_csv:
        raise BadInput("--json and --csv do not go together")
    if as_json or as_csv:
        return "json" if as_json else "csv"
    return "text" if output is None else _SHAPES.get(output.suffix.lower(), "text")


def refuse_unwritable(output: Path | None) -> None:
    if output is None:
        return
    if output.is_dir():
        raise BadInput("is a folder", where=str(output), hint="name a file")
    if not output.absolute().parent.is_dir():
        raise NotFound("there is no such folder", where=str(output.parent), hint=f"make it: `mkdir -p {output.parent}`")


def lines_of(
    rows: Sequence[dict[str, str]],
    answers: Iterable[Answers],
    *,
    names: Sequence[str],
    shape: Shape,
    ensemble: str | None = None,
    weights: Sequence[float] = (),
) -> Iterator[str]:
    """The output, line by line, as the answers come. `names` and, where an ensemble has them, `weights`: the
    artifacts'."""
    columns: list[str] | None = None
    for row, found in zip(rows, answers, strict=False):
        told = _told(found, names, ensemble, weights)
        if shape == "json":
            yield json.dumps({**row, **told}, ensure_ascii=False) + "\n"
        elif shape == "text":
            yield _line(list(_columns(told).values()))
        else:
            wide = {**row, **_columns(told)}
            if columns is None:
                columns = list(wide)
                yield _csv(columns, shape)
            yield _csv([wide.get(name, "") for name in columns], shape)


def _told(found: Answers, names: Sequence[str], ensemble: str | None, weights: Sequence[float]) -> dict[str, Any]:
    texts = [one["text"] for one in found]
    if len(found) == 1:
        return {"prediction": texts[0]}
    each = {"predictions": dict(zip(names, texts, strict=True))}
    if ensemble is None:
        return each
    if ensemble == "vote":
        return {"prediction": vote(texts), **each}
    each_said = [one["probabilities"] for one in found]
    probabilities = weighted(each_said, weights) if ensemble == "weighted" else mean(each_said)
    return {"prediction": likeliest(probabilities), "probabilities": probabilities, **each}


def _columns(told: dict[str, Any]) -> dict[str, str]:
    """One prediction, or each artifact's under its name."""
    return {"prediction": told["prediction"]} if "prediction" in told else dict(told["predictions"])


def _line(texts: Sequence[str]) -> str:
    """One text as it is, several with tabs between them, on one line."""
    parts = texts if len(texts) == 1 else [text.replace("\t", " ") for text in texts]
    return "\t".join(" ".join(part.splitlines()) for part in parts) + "\n"


def _csv(cells: Sequence[str], shape: Shape) -> str:
    if shape == "tsv":  # as it is read: a quote is text, and a cell has neither tabs nor line breaks
        return "\t".join(" ".join(str(cell).replace("\t", " ").splitlines()) for cell in cells) + "\n"
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def write_out(output: Path, lines: Iterable[str]) -> None:
    """A whole file or none; a link stays one."""
    with file_written_atomically(output.resolve()) as file:
        file.writelines(line.encode() for line in lines)


@dataclass
class Unfinished:
    """The answers so far, in FILE.unfinished: a line that says to what, then a line for each row.

    Held by one command at a time. A last line that a crash has torn is written anew.
    """

    path: Path
    answers: list[Answers]
    _file: IO[bytes]

    @classmethod
    @contextmanager
    def open(cls, output: Path, digests: Sequence[str], rows: Sequence[dict[str, str]]) -> Iterator[Unfinished]:
        path = output.with_name(f"{output.name}.unfinished")
        asked = hashlib.sha256(json.dumps([_FORMAT, list(digests), list(rows)]).encode()).hexdigest()
        with path.open("r+b" if path.exists() else "w+b") as file:
            _hold(file, path)
            found = cls(path, _read(file, asked, len(rows), path), file)
            try:
                yield found
            finally:
                if not found.answers:
                    path.unlink(missing_ok=True)  # nothing to go on from

    def keep(self, line: str) -> None:
        self.answers.append(json.loads(line))
        self._file.write(line.encode())
        self._file.flush()

    def done(self) -> None:
        self.answers.clear()


def _hold(file: IO[bytes], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        what = "another `ptq predict` is writing here just now"
        raise BadInput(what, where=str(path), hint="wait for it, or name another --output") from None


def _read(file: IO[bytes], asked: str, rows: int, path: Path) -> list[Answers]:
    """The answers that are there; the file is left ready for the next one."""
    first, *lines = file.read().split(b"\n")
    head = json.dumps({"asked": asked}).encode()
    if first and first != head:
        what = "holds the unfinished predictions of other rows or other artifacts"
        raise BadInput(what, where=str(path), hint=f"remove it (`rm {path}`), or name another --output")
    found: list[Answers] = []
    file.seek(0)
    file.write(head + b"\n")
    for line in lines[:-1][:rows]:  # what follows the last line end is torn, or nothing
        try:
            found.append(json.loads(line))
        except ValueError:  # after a power cut
            break
        file.write(line + b"\n")
    file.truncate()
    file.flush()
    return found
