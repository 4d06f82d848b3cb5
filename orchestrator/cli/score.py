"""`ptq score`: artifacts on the rows of a split, each by itself and all together as an ensemble."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from orchestrator.cli.artifacts_used import Artifacts, OnGpu, base_folder_of, find_artifacts, recipe_of
from orchestrator.cli.common import Json, open_registry
from orchestrator.cli.output import render
from orchestrator.cli.predict_place import place
from orchestrator.cli.programs import pipe_of, program
from orchestrator.errors import BadInput, NotFound

if TYPE_CHECKING:
    from orchestrator.recipe.schema import JobRecipe
    from orchestrator.registry.artifacts import Artifact
    from orchestrator.registry.datasets import DatasetVersion
    from orchestrator.registry.storage.engine import Registry

_NARROW, _WIDE = 47, 88  #: columns of a terminal of 80, and of one of 120, for metrics

Split = Annotated[
    Literal["train", "validation", "test"], typer.Option("--split", help="whose rows; all of them are answered")
]
Dataset = Annotated[
    str | None,
    typer.Option("--dataset", metavar="NAME[@VERSION]", help="default: what the artifacts were trained on"),
]
By = Annotated[str | None, typer.Option("--by", metavar="FIELD", help="score what has one value of a field apart, too")]


def register(app: typer.Typer) -> None:
    @app.command("score")
    def score(
        artifacts: Artifacts,
        split: Split = "validation",
        dataset: Dataset = None,
        by: By = None,
        gpu: OnGpu = None,
        json: Json = False,
    ) -> None:
        """Score artifacts on a split, and the ensemble of several: what most say, and the highest mean probability."""
        registry = open_registry()
        found = find_artifacts(registry, artifacts)
        data = _dataset(registry, found, dataset)
        _refuse_unfit(found, data, split, by)
        spec = {
            "artifacts": [str(one.path) for one in found], "base": base_folder_of(registry, found),
            "dataset": str(data.path), "split": split, "by": by, "weights": _weights(found),
        }  # fmt: skip
        with place(registry, gpu=gpu, note=f"ptq score {' '.join(artifacts)}") as here:
            report = _run(spec | {"device": here.device, "gpus": here.gpus}, here.cards)
        told = _told(report, found, data, split)
        if json:
            render.print_json(told)
        else:
            _table(told)


def _dataset(registry: Registry, found: Sequence[Artifact], named: str | None) -> DatasetVersion:
    from orchestrator.registry.datasets import get_version

    if named is not None:
        return get_version(registry, named)
    strange = next((one for one in found if not isinstance(one.summary.get("dataset"), dict)), None)
    if strange is not None:
        what = f"{strange.ref} does not say what it was trained on"
        raise BadInput(what, where="--dataset", hint="name the dataset whose rows it is to answer")
    trained = list(dict.fromkeys("{name}@{version}".format(**one.summary["dataset"]) for one in found))
    if len(trained) > 1:
        what = f"the artifacts were trained on {' and '.join(trained)}"
        raise BadInput(what, where="--dataset", hint="name the one whose rows they are to answer")
    try:
        data = get_version(registry, trained[0])
    except NotFound as error:
        hint = "name a dataset of this registry with --dataset; see `ptq dataset list`"
        raise NotFound(error.message, where=f"the dataset that {found[0].ref} was trained on", hint=hint) from error
    if data.digest != found[0].summary["dataset"]["digest"]:
        what = f"{trained[0]} has other rows here than where {found[0].ref} was trained"
        raise BadInput(what, where="--dataset", hint=f"to use it all the same: --dataset {trained[0]}")
    return data


def _refuse_unfit(found: Sequence[Artifact], data: DatasetVersion, split: str, by: str | None) -> None:
    """Said before anything is computed."""
    if not data.splits.get(split):
        there = ", ".join(f"{name} ({rows:,} rows)" for name, rows in data.splits.items())
        raise BadInput(f"{data.ref} has no {split} rows; it has {there}", where="--split")
    if by is not None and by not in data.fields:
        raise BadInput(f"{data.ref} has no field {by!r}; it has {', '.join(data.fields)}", where="--by")
    for one in found:
        recipe = recipe_of(one)
        missing = [name for name in _fields(recipe) if name not in data.fields]
        if missing:
            what = f"{data.ref} lacks {', '.join(missing)}, which {one.ref} reads; it has {', '.join(data.fields)}"
            raise BadInput(what, where="--dataset")
        if by is not None and recipe.train.mixture is not None:
            raise BadInput(f"the scores of {one.ref} are told apart by its mixture's tasks already", where="--by")


def _fields(recipe: JobRecipe) -> list[str]:
    """What the artifact reads of a row to answer it and to be scored."""
    from orchestrator.recipe.fit_scores import score_templates
    from orchestrator.recipe.tasks import task_templates
    from orchestrator.tasks.template import parse

    texts = [text for key, text in [*task_templates(recipe.task), *score_templates(recipe)] if key != "soft"]
    texts += getattr(recipe.method, "patterns", ())
    return list(dict.fromkeys(name for text in texts for name in parse(text).fields))


def _weights(found: Sequence[Artifact]) -> list[float]:
    """Of PET's patterns; none where an artifact does not know them."""
    known = [one.summary.get("patterns") or [] for one in found]
    return [sum(one["accuracy"] for one in patterns) for patterns in known] if all(known) else []


def _run(spec: dict[str, Any], cards: Mapping[str, str]) -> dict[str, Any]:
    from subprocess import PIPE

    report: dict[str, Any] = {}
    with (
        render.progress("scoring") as advance,
        program("orchestrator.training.score_artifacts", spec, cards=cards, stdout=PIPE) as process,
    ):
        for line in pipe_of(process.stdout):
            report = json.loads(line)
            if "done" in report:
                advance(report["done"], report["rows"])
    if process.returncode:
        raise typer.Exit(process.returncode)
    return report


def _told(report: dict[str, Any], found: Sequence[Artifact], data: DatasetVersion, split: str) -> dict[str, Any]:
    each = [
        {"artifact": one.ref, "job": one.job_id, "name": one.job_name, "scores": scores}
        for one, scores in zip(found, report["each"], strict=True)
    ]
    names = [name for name in report["each"][0] if all(name in scores for scores in report["each"])]
    average = {name: fmean(scores[name] for scores in report["each"]) for name in names} if len(each) > 1 else None
    return {
        "dataset": data.ref,
        "split": split,
        "rows": report["rows"],
        "artifacts": each,
        "average": average,
        "ensembles": report["ensembles"],
        "no_ensemble": report["no_ensemble"],
    }


def _table(told: dict[str, Any]) -> None:
    names = list(dict.fromkeys(name for one in told["artifacts"] for name in one["scores"]))
    widths = accumulate(len(name) + 3 for name in names)
    room = _NARROW if render.is_narrow() else _WIDE
    shown = names[: max(1, sum(width <= room for width in widths))]
    lines = [(one["artifact"], one["name"], one["scores"]) for one in told["artifacts"]]
    lines += [("average", "", told["average"])] if told["average"] else []
    lines += [(f"ensemble: {how}", "", scores) for how, scores in told["ensembles"].items()]
    rows = [[who, name, *(scores.get(metric) for metric in shown)] for who, name, scores in lines]
    render.table(["artifact", "name", *shown], rows, right=shown)
    render.note(f"scores on the {told['rows']:,} inputs of {told['dataset']}, {told['split']}")
    if told["no_ensemble"] and len(told["artifacts"]) > 1:
        render.note(f"no ensemble: {told['no_ensemble']}")
    if len(names) > len(shown):
        render.note(f"more with --json: {', '.join(names[len(shown) :])}")
