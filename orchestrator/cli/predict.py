"""`ptq predict`: use artifacts on new rows."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from orchestrator.cli.artifacts_used import Artifacts, OnGpu, base_folder_of, find_artifacts, recipe_of
from orchestrator.cli.output import render
from orchestrator.cli.output.predict_output import Answers, Unfinished, lines_of, refuse_unwritable, shape_of, write_out
from orchestrator.cli.predict_place import Place, place
from orchestrator.cli.predict_rows import file_rows, stdin_rows
from orchestrator.cli.programs import pipe_of, program
from orchestrator.errors import BadData, BadInput
from orchestrator.settings import load_settings

if TYPE_CHECKING:
    from orchestrator.recipe.schema import JobRecipe
    from orchestrator.registry.artifacts import Artifact

Where = Callable[[], AbstractContextManager[Place]]

Input = Annotated[
    str,
    typer.Option(
        "--input",
        "-i",
        metavar="FILE|-",
        help="rows: .jsonl, .csv, .tsv, .parquet, .txt; - reads JSON lines (or plain lines) from standard input",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="write here, as .jsonl, .csv, .tsv or plain lines; what was interrupted goes on where it stopped",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="JSON lines: the row's fields and `prediction` (of several: `predictions`)")
]
AsCsv = Annotated[bool, typer.Option("--csv", help="CSV: the row's fields and the same as columns")]
Ensemble = Annotated[
    Literal["vote", "mean", "weighted"] | None,
    typer.Option(
        "--ensemble",
        help="one prediction from several artifacts: what most say, the label of the highest mean probability, or of "
        "the highest mean score with PET's weights (of jobs with `weights: accuracy`)",
    ),
]


def register(app: typer.Typer) -> None:
    app.command("predict")(predict)


def predict(
    artifacts: Artifacts,
    input: Input,
    output: Output = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    ensemble: Ensemble = None,
    gpu: OnGpu = None,
) -> None:
    """Predict with trained prompts: one line for each input row, in the same order."""
    shape = shape_of(output, as_json=as_json, as_csv=as_csv)
    from orchestrator.registry.storage.engine import Registry

    registry = Registry.open(load_settings())
    found = find_artifacts(registry, artifacts)
    recipes = [recipe_of(one) for one in found]
    _refuse_ensemble(ensemble, recipes)
    spec = {"artifacts": [str(one.path) for one in found], "base": base_folder_of(registry, found)}
    rows = _rows(input, _fields(recipes))
    _refuse_choices(recipes, rows, input)
    refuse_unwritable(output)
    names = [one.ref for one in found]
    weights = _weights(found) if ensemble == "weighted" else []
    lines = partial(lines_of, rows, names=names, shape=shape, ensemble=ensemble, weights=weights)
    where = partial(place, registry, gpu=gpu, note=f"ptq predict {' '.join(artifacts)}")
    if output is None:
        _straight(spec, where, rows, lines, render.write)
        return
    if output.exists() and not output.is_file():  # /dev/null, a pipe: there is nothing to go on from
        with output.open("w", encoding="utf-8") as file:
            _straight(spec, where, rows, lines, file.write)
        return
    with Unfinished.open(output, [one.digest for one in found], rows) as unfinished:
        if len(unfinished.answers) < len(rows):
            _go_on(spec, where, rows, unfinished)
        write_out(output, lines(unfinished.answers))
        unfinished.done()


def _straight(
    spec: dict[str, Any],
    where: Where,
    rows: Sequence[dict[str, str]],
    lines: Callable[[Iterable[Answers]], Iterator[str]],
    write: Callable[[str], object],
) -> None:
    """Predict all rows and write each as it comes."""
    with where() as here, _predictor(spec, here) as process:
        _feed(process, rows)
        for line in lines(json.loads(found) for found in pipe_of(process.stdout)):
            write(line)
    if process.returncode:
        raise typer.Exit(process.returncode)


def _predictor(spec: dict[str, Any], here: Place) -> AbstractContextManager[subprocess.Popen[str]]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return program(
        "orchestrator.training.predict", spec | {"device": here.device, "gpus": here.gpus}, cards=here.cards, **pipes
    )


def _go_on(spec: dict[str, Any], where: Where, rows: Sequence[dict[str, str]], unfinished: Unfinished) -> None:
    """Predict what is not yet there; every answer is kept as it comes."""
    done = len(unfinished.answers)
    if done:
        render.note(f"{done} of {len(rows)} rows are in {unfinished.path} already")
    try:
        with where() as here, render.progress("predicting") as advance, _predictor(spec, here) as process:
            _feed(process, rows[done:])
            for line in pipe_of(process.stdout):
                unfinished.keep(line)
                advance(len(unfinished.answers), len(rows))
        if process.returncode:
            raise typer.Exit(process.returncode)
    except BaseException:
        if unfinished.answers:
            kept = f"{len(unfinished.answers)} of {len(rows)} answers are kept in {unfinished.path}"
            render.note(f"{kept}; the same command goes on from there")
        raise


def _fields(recipes: Sequence[JobRecipe]) -> list[str]:
    """What the artifacts read of a row."""
    from orchestrator.recipe.tasks import choices_of, own_choices
    from orchestrator.tasks.template import parse

    found: list[str] = []
    for recipe in recipes:
        for template in (recipe.task.input, *getattr(recipe.method, "patterns", ())):
            found += parse(template).fields
        if own_choices(recipe.task):
            found += choices_of(recipe.task).read
    return list(dict.fromkeys(found))


def _refuse_choices(recipes: Sequence[JobRecipe], rows: Sequence[dict[str, str]], input: str) -> None:
    """Rows that bring their own answers are looked at before the first is answered."""
    from orchestrator.recipe.tasks import choices_of, own_choices

    where = "standard input" if input == "-" else input
    each = {repr(one.task.labels) + repr(one.task.candidates): one.task for one in recipes if own_choices(one.task)}
    for choices in map(choices_of, each.values()):
        for number, row in enumerate(rows, start=1):
            try:
                choices.offered(row)
            except BadData as error:
                hint = "mend the row; nothing was predicted"
                raise BadData(error.message, where=f"{where}, row {number:,}", hint=hint) from error


def _refuse_ensemble(ensemble: str | None, recipes: Sequence[JobRecipe]) -> None:
    if ensemble is None:
        return
    if len(recipes) == 1:
        hint = "name several, or the group of their jobs (g3)"
        raise BadInput("one artifact is no ensemble", where="--ensemble", hint=hint)
    labels = [_chosen_from(one) for one in recipes]
    if ensemble != "vote" and (not any(labels[0]) or labels.count(labels[0]) < len(labels)):
        what = "the artifacts do not all choose among the same labels, so they have no mean probabilities"
        raise BadInput(what, where="--ensemble", hint="texts can be voted on: `--ensemble vote`")


def _chosen_from(recipe: JobRecipe) -> tuple[list[str], str | None]:
    """Its labels, or where a row has its own; neither where it writes."""
    from orchestrator.recipe.tasks import Classify

    task = recipe.task
    return (sorted(task.labels), task.candidates) if isinstance(task, Classify) else ([], None)


def _weights(found: Sequence[Artifact]) -> list[float]:
    """How right each artifact's patterns were before anything was trained: a pattern counts alike wherever it is."""
    for one in found:
        if not one.summary.get("patterns"):
            what = f"{one.ref} does not know how right its patterns were before training"
            hint = "train with `method: {type: pet, weights: accuracy}`, or ask for `--ensemble mean`"
            raise BadInput(what, where="--ensemble", hint=hint)
    return [sum(pattern["accuracy"] for pattern in one.summary["patterns"]) for one in found]


def _rows(input: str, fields: list[str]) -> list[dict[str, str]]:
    rows = list(stdin_rows(fields) if input == "-" else file_rows(Path(input), fields))
    if not rows:
        where = "standard input" if input == "-" else input
        raise BadData("there are no rows to predict", where=where, hint="one row a line")
    return rows


def _feed(process: subprocess.Popen[str], rows: Sequence[dict[str, str]]) -> None:
    """Write the rows from a thread of its own: the program answers batch by batch while it reads."""

    def write() -> None:
        # A broken pipe: the program has ended; its exit code says why.
        with contextlib.suppress(BrokenPipeError), pipe_of(process.stdin) as pipe:
            pipe.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    threading.Thread(target=write, daemon=True).start()
