"""Scores of labels that a base writes, of the tasks of a mixture, and told apart by a field: by T5's own functions."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
from training_fixtures import THINGS, make_run, recipe

from orchestrator.dispatch import labels
from orchestrator.errors import BadData, BadRecipe
from orchestrator.recipe.fit import recipe_findings
from orchestrator.recipe.judging import Judging
from orchestrator.recipe.schema import JobRecipe, Recipe
from orchestrator.tasks.metrics import score
from orchestrator.training.mixture import MixedTasks
from orchestrator.training.objectives.generation import Generation
from orchestrator.training.parts import refuse_many_parts, values_of
from orchestrator.training.predict import Predictor
from orchestrator.training.rows import Rows
from tests import metric_rows as rows
from tests import official

CB = ["entailment", "contradiction", "neutral"]
TASKS = {
    "cb": {"metrics": ["accuracy", "macro_f1"], "labels": CB},
    "multirc": {"metrics": ["positive_f1", "group_exact_match"], "labels": ["0", "1"], "group": "{group}"},
    "record": {"metrics": ["record_em", "record_f1"]},
}
METHOD = {"type": "prompt-tuning", "length": 2}


def written(**task: Any) -> dict[str, Any]:
    return {"type": "generate", "input": "{task} {input}", "target": "{target}", **task}


def mixed(**own: Any) -> dict[str, Any]:
    return recipe(METHOD, task=written(metrics=["exact_match"]), train__mixture={"by": "{task}", "tasks": TASKS | own})


def chosen(**own: Any) -> dict[str, Any]:
    task = {"type": "classify", "input": "{text}", "label": "{label}", "labels": {"a": ["x"], "b": ["y"]}}
    return recipe(METHOD, task=task, train__mixture={"by": "{task}", "tasks": {"a": own}})


class Plain:
    """What `Generation` asks of its encoder for references."""

    kind = "seq2seq"
    eos = 1

    def plain(self, template: str, fields: dict[str, str]) -> str:
        return template.format(**fields)


def references(made: dict[str, Any], data: list[dict[str, str]]) -> tuple[list[int], list[list[str]]]:
    whole = Recipe.model_validate(made)
    encoder: Any = Plain()
    return Generation(whole.task, encoder, Judging(whole)).references(data)  # type: ignore[arg-type]


def superglue() -> tuple[list[dict[str, str]], list[str]]:
    """Rows of three tasks, those of CB all with one input, and what was written for each."""
    cb = [{"task": "cb", "input": "the same", "target": one, "group": ""} for one in rows.CB_WANTED]
    multirc = [
        {"task": "multirc", "input": f"{number}", "target": wanted, "group": question}
        for number, (wanted, question) in enumerate(zip(rows.MULTIRC_WANTED, rows.MULTIRC_QUESTIONS, strict=True))
    ]
    record = [
        {"task": "record", "input": f"{number}", "target": one, "group": ""}
        for number, several in enumerate(rows.RECORD_WANTED)
        for one in several
    ]
    return [*cb, *multirc, *record], [*rows.CB_WRITTEN, *rows.MULTIRC_WRITTEN, *rows.RECORD_SAID]


def test_each_task_has_the_scores_that_t5_gives_it() -> None:
    data, said = superglue()
    numbers, wanted = references(mixed(), data)
    assert len(numbers) == len(said)  # of CB every row, though all inputs are equal; of ReCoRD one for its answers
    assert wanted[-1] == ["Jones"]
    assert wanted[-2] == ["New York", "City of New York"]
    found = values_of(Judging(Recipe.model_validate(mixed())), [data[n] for n in numbers], said, wanted)
    cb = [[official.class_id(one, CB) for one in part] for part in (rows.CB_WANTED, rows.CB_WRITTEN)]
    yes = [[official.class_id(one, ("0", "1")) for one in part] for part in (rows.MULTIRC_WANTED, rows.MULTIRC_WRITTEN)]
    exact = [
        all(a == b for a, b, its in zip(*yes, rows.MULTIRC_QUESTIONS, strict=True) if its == question)
        for question in dict.fromkeys(rows.MULTIRC_QUESTIONS)
    ]
    em, f1 = official.squad(rows.RECORD_SAID, rows.RECORD_WANTED)
    expected = {
        "accuracy:cb": official.simple_accuracy(*cb),
        "macro_f1:cb": official.mean_multiclass_f1(*cb, 3),
        "positive_f1:multirc": official.f1_score_with_invalid(yes[0], list(yes[1])),
        "group_exact_match:multirc": fmean(exact),
        "record_em:record": em / 100,
        "record_f1:record": f1 / 100,
    }
    each = list(expected.values())
    average = 100 * fmean(fmean(each[i : i + 2]) for i in (0, 2, 4))
    plain = {name.partition(":")[0]: value for name, value in expected.items()}
    assert found == pytest.approx({"average": average, **plain, **expected})
    assert next(iter(found)) == "average"
    assert Judging(Recipe.model_validate(mixed())).headline == "average"


def test_equal_inputs_share_references_within_a_part_and_a_task() -> None:
    plain = written(metrics=["bleu"], input="{input}")
    data = [{"style": style, "task": style, "input": "x", "target": f"{style} {n}"} for style in "ab" for n in (1, 2)]
    apart = recipe(METHOD, task=plain, train__scores_by="{style}")
    assert references(apart, data) == ([0, 2], [["a 1", "a 2"], ["b 1", "b 2"]])
    tasks = recipe(METHOD, task=plain, train__mixture={"by": "{task}"})
    assert references(tasks, data) == ([0, 2], [["a 1", "a 2"], ["b 1", "b 2"]])
    assert references(recipe(METHOD, task=plain), data) == ([0], [["a 1", "a 2", "b 1", "b 2"]])


def test_a_task_of_a_mixture_can_do_without_the_group_of_all() -> None:
    all_of = {"metrics": ["accuracy", "group_exact_match"], "labels": ["0", "1"], "group": "{group}"}
    made = recipe(
        METHOD, task=written(**all_of), train__mixture={"by": "{task}", "tasks": {"a": {"metrics": ["accuracy"]}}}
    )
    assert recipe_findings(Recipe.model_validate(made)) == []
    judging = Judging(Recipe.model_validate(made))
    assert (judging.of("a").group, judging.of("b").group is None) == (None, False)


def test_scores_are_told_apart_by_a_field() -> None:
    made = recipe(METHOD, task=written(metrics=["bleu", "exact_match"]), train__scores_by="{seen}")
    data = [{"seen": "new" if i == 1 else "old", "input": str(i)} for i in range(3)]
    found = values_of(Judging(Recipe.model_validate(made)), data, rows.SAID, rows.WANTED)
    old = [0, 2]
    assert found == {
        **score(["bleu", "exact_match"], rows.SAID, rows.WANTED),
        **{f"{k}:new": v for k, v in score(["bleu", "exact_match"], rows.SAID[1:2], rows.WANTED[1:2]).items()},
        "bleu:old": score(["bleu"], [rows.SAID[i] for i in old], [rows.WANTED[i] for i in old])["bleu"],
        "exact_match:old": 0,
    }
    many = [{"seen": str(i)} for i in range(101)]
    with pytest.raises(BadData, match="101 different values"):
        refuse_many_parts(Judging(Recipe.model_validate(made)), many)
    refuse_many_parts(Judging(Recipe.model_validate(made)), many[1:])


@pytest.mark.parametrize(
    ("made", "where", "what"),
    [
        (recipe(METHOD, task=written(metrics=["accuracy"])), "task.labels", "accuracy need all labels"),
        (recipe(METHOD, task=written(metrics=["bleu"], labels=CB)), "task.metrics", "bleu are scores of texts"),
        (
            recipe(METHOD, task=written(metrics=["group_exact_match"], labels=CB)),
            "task.group",
            "group_exact_match counts groups",
        ),
        (mixed(a={"metrics": ["acuracy"]}), "train.mixture.tasks.a.metrics", "did you mean `accuracy`"),
        (mixed(a={"metrics": ["ter"]}), "train.mixture.tasks.a.metrics", "a scale up to 100"),
        (mixed(a={"metrics": ["cb"]}), "train.mixture.tasks.a.labels", "cb need all labels"),
        (chosen(metrics=["group_exact_match"]), "task.group", "group_exact_match counts groups"),
        (chosen(metrics=["accuracy"], group="{q}"), "train.mixture.tasks.a.group", "belongs to `type: generate`"),
        (chosen(metrics=["wsc"]), "train.mixture.tasks.a.metrics", "wsc is a score of task.candidates"),
        (mixed() | {"task": written(metrics=["nist"])}, "task.metrics", "a scale up to 100"),
        (
            mixed() | {"train": {**mixed()["train"], "scores_by": "{input}"}},
            "train.scores_by",
            "told apart by its tasks",
        ),
    ],
)
def test_scores_that_do_not_suit_are_refused(made: dict[str, Any], where: str, what: str) -> None:
    found = [(".".join(map(str, one.path)), one.message) for one in recipe_findings(Recipe.model_validate(made))]
    assert [(path, what in message) for path, message in found] == [(where, True)]


def test_what_the_data_hold_is_looked_at_before(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {("cb", "neutral"): 1, ("cb", "maybe"): 7, ("multirc", "0"): 2, ("record", "anything"): 3}
    monkeypatch.setattr(labels, "distinct_values", lambda data, split, fields: held)
    data: Any = SimpleNamespace(ref="d@1", splits={"train": 9})

    def faults(made: dict[str, Any]) -> list[str]:
        return labels.LabelCheck().faults(JobRecipe.model_validate(made), Path(), data)

    (fault,) = faults(mixed())
    assert "holds the label `maybe` (train row 7); the recipe knows entailment, contradiction, neutral" in fault
    del held["cb", "maybe"]
    assert faults(mixed()) == []
    assert faults(mixed(copa={"metrics": ["record_em"]})) == [
        "train.mixture.tasks: `copa` is no task of the dataset; it has cb, multirc, record"
    ]
    mixture = Recipe.model_validate(mixed()).train.mixture
    assert mixture is not None
    with pytest.raises(BadRecipe, match="`cb` is no task of the dataset"):
        MixedTasks(mixture, [{"task": "multirc"}, {"task": "record"}])
    with pytest.raises(BadData, match="target is 'maybe'"):
        references(mixed(), [{"task": "cb", "input": "a", "target": "maybe"}])


def test_a_job_that_writes_its_labels(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    """Its prompt starts from the labels; while training it keeps the best by its average; scores counted again."""
    task = {"type": "generate", "input": "{text}", "target": "{target}", "max_new_tokens": 3}
    mixture = {"by": "{label}", "tasks": {"warm": {"metrics": ["accuracy", "cb"], "labels": list(THINGS)}}}
    made = recipe(
        METHOD | {"init": {"type": "labels", "words": list(THINGS[:2])}}, task=task | {"metrics": ["exact_match"]},
        train__mixture=mixture, train__eval_every=3, train__keep="best", train__lr=0.3,
    )  # fmt: skip
    run = make_run(tmp_path, [made], base=bases["t5"], dataset=dataset, kind="seq2seq")
    assert run.train() == 0
    data = list(Rows.open(dataset, "validation"))
    said = [r["prediction"] for r in Predictor.load(run.jobs[0].artifact(1), bases["t5"]).predict(data)]
    mine = [i for i, row in enumerate(data) if row["label"] == "warm"]
    wanted = [[data[i]["target"]] for i in mine]
    found = run.artifact()["metrics"]["validation"]
    for name in ("accuracy", "cb"):
        assert found[f"{name}:warm"] == score([name], [said[i] for i in mine], wanted, labels=THINGS)[name]
    others = fmean(value for name, value in found.items() if name.startswith("exact_match:"))
    assert found["exact_match"] == others
    best = run.artifact()["best"]
    told = [e["values"]["average"] for e in run.events(kind="metric") if e["split"] == "validation"]
    assert best["value"] == max(told[:-1])
