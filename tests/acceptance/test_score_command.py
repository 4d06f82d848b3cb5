"""`ptq score`: artifacts on a split as training has scored them, and their ensembles counted again by hand."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from queue_helpers import keep_trained
from sklearn.metrics import accuracy_score, f1_score
from training_fixtures import THINGS, make_base, make_dataset, make_run, recipe

from orchestrator.cli import main
from orchestrator.cli import score as score_verb
from orchestrator.errors import BadInput
from orchestrator.paths import write_json
from orchestrator.training import score_artifacts
from orchestrator.training.predict import Predictor
from orchestrator.training.rows import Rows

CLASSIFY = {
    "type": "classify", "labels": {"warm": ["warm"], "cold": ["cold"]}, "input": "the {text} is ",
    "metrics": ["accuracy", "macro_f1"],
}  # fmt: skip
CLOZE = {"type": "cloze", "input": "the {text} is", "target": "{target}"}
PROMPT = {"type": "prompt-tuning", "length": 3, "init": {"type": "vocab", "top": 30}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds that choose among labels, three that write, two that name a missing word."""
    root = tmp_path_factory.mktemp("trained")
    base, dataset = make_base(root / "base", "gpt2"), make_dataset(root / "data")
    jobs = [
        {**recipe(PROMPT, train__seeds=[seed], train__steps=2, train__lr=0.5, train__baseline=False), "task": task}
        for task, seeds in ((CLASSIFY, (1, 2, 3)), (recipe(PROMPT)["task"], (1, 2, 3)), (CLOZE, (1, 2)))
        for seed in seeds
    ]
    run = make_run(root / "run", jobs, base=base, dataset=dataset)
    assert run.train() == 0
    return root


@pytest.fixture
def artifacts(trained: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """In a registry with the rows that they were trained on; the program runs in this process."""
    folders = [trained / "run" / "jobs" / str(number) / "artifact-1" for number in range(1, 9)]
    keep_trained(home, trained / "base", folders)
    for split in ("train", "validation"):
        rows = [json.dumps(row) for row in Rows.open(trained / "data", split)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    sources = ["--train", f"{tmp_path}/train.jsonl", "--validation", f"{tmp_path}/validation.jsonl"]
    assert ptq(monkeypatch, "dataset", "add", "things", *sources) == 0

    @contextlib.contextmanager
    def here(module: str, spec: dict[str, Any], **_: Any) -> Iterator[Any]:
        assert module == score_artifacts.__name__
        write_json(tmp_path / "spec.json", {"threads": 1, **spec})
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            code = score_artifacts.main([str(tmp_path / "spec.json")])
        yield SimpleNamespace(stdout=io.StringIO(said.getvalue()), returncode=code)

    monkeypatch.setattr("orchestrator.cli.score.program", here)
    return folders


def ptq(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["ptq", *arguments])
    with pytest.raises(SystemExit) as left:
        main.main()
    return int(left.value.code or 0)


def scored(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert ptq(monkeypatch, "score", *arguments, "--dataset", "things", "--json") == 0
    return dict(json.loads(capsys.readouterr().out))


def test_members_have_training_s_scores_and_ensembles_those_of_their_answers(
    artifacts: list[Path], trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = scored(monkeypatch, capsys, "1", "2", "a3")
    kept = [json.loads((folder / "artifact.json").read_text())["metrics"]["validation"] for folder in artifacts]
    assert [one["scores"] for one in found["artifacts"]] == kept[:3]
    assert found["average"] == pytest.approx({name: sum(one[name] for one in kept[:3]) / 3 for name in kept[0]})
    rows = list(Rows.open(trained / "data", "validation"))
    first, *others = artifacts[:3]
    said = list(Predictor.load(first, trained / "base", *others).answers(rows))
    wanted = [row["label"] for row in rows]
    votes = [Counter(one.text for one in lot).most_common(1)[0][0] for lot in said]  # of three, two agree
    sums = [sum(one.probabilities["warm"] for one in lot if one.probabilities) for lot in said]
    means = ["warm" if total > 1.5 else "cold" for total in sums]
    for how, merged in (("vote", votes), ("mean", means)):
        assert found["ensembles"][how] == pytest.approx(
            {"accuracy": accuracy_score(wanted, merged), "macro_f1": f1_score(wanted, merged, average="macro")}
        )
    assert set(found["ensembles"]) == {"vote", "mean"}  # no patterns, so no weights
    assert len({json.dumps(one) for one in (*kept[:3], *found["ensembles"].values())}) > 1
    apart = scored(monkeypatch, capsys, "1", "2", "3", "--by", "label")
    assert set(apart["ensembles"]["vote"]) == {
        f"{m}{of}" for m in ("accuracy", "macro_f1") for of in ("", ":warm", ":cold")
    }
    warm = [vote == "warm" for vote, label in zip(votes, wanted, strict=True) if label == "warm"]
    assert apart["ensembles"]["vote"]["accuracy:warm"] == pytest.approx(sum(warm) / len(warm))


def test_texts_and_missing_words_are_voted_on(
    artifacts: list[Path], trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [json.loads((folder / "artifact.json").read_text())["metrics"]["validation"] for folder in artifacts]
    rows = list(Rows.open(trained / "data", "validation"))
    for numbers, metric in (((4, 5, 6), "exact_match"), ((7, 8), "p_at_1")):
        found = scored(monkeypatch, capsys, *map(str, numbers))
        assert [one["scores"] for one in found["artifacts"]] == [kept[number - 1] for number in numbers]
        first, *others = (artifacts[number - 1] for number in numbers)
        said = list(Predictor.load(first, trained / "base", *others).answers(rows))
        votes = [Counter(one.text for one in lot).most_common(1)[0][0] for lot in said]
        wanted: dict[str, set[str]] = {}
        for row in rows:
            wanted.setdefault(row["text"], set()).add(row["target"])
        # Equal inputs are one with several references where texts are written; a missing word is each row's own.
        asked = {row["text"]: vote for row, vote in zip(rows, votes, strict=True)}.items()
        hits = [vote in wanted[text] for text, vote in asked]
        if metric == "p_at_1":
            hits = [vote == row["target"] for row, vote in zip(rows, votes, strict=True)]
        assert found["ensembles"] == {"vote": {metric: pytest.approx(sum(hits) / len(hits))}}
    assert {one["target"] for one in rows} <= set(THINGS)


def test_a_table_for_people(
    artifacts: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert ptq(monkeypatch, "score", "1", "2", "--dataset", "things@1") == 0
    shown = capsys.readouterr()
    names = [line.split("  ")[0] for line in shown.out.splitlines()]
    assert names == ["ARTIFACT", "a1", "a2", "average", "ensemble: vote", "ensemble: mean"]
    assert "scores on the 10 inputs of things@1, validation" in shown.err
    assert ptq(monkeypatch, "score", "1", "4", "--dataset", "things") == 0  # they do not answer the same
    assert "no ensemble: the artifacts do not all answer the same rows" in capsys.readouterr().err


def test_an_artifact_that_names_no_dataset_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was imported from PEFT, for example."""
    strange: Any = SimpleNamespace(ref="a7", summary={})
    with pytest.raises(BadInput, match="a7 does not say what it was trained on"):
        score_verb._dataset(None, [strange], None)  # type: ignore[arg-type]


def test_what_cannot_be_scored_is_told(
    artifacts: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, code, said in (
        (["1"], 3, "the dataset that a1 was trained on"),
        (["1", "--dataset", "things", "--split", "test"], 2, "things@1 has no test rows"),
        (["1", "--dataset", "things", "--by", "colour"], 2, "has no field 'colour'"),
        (["1", "--dataset", "nothing"], 3, "there is no dataset 'nothing'"),
    ):
        assert ptq(monkeypatch, "score", *arguments) == code
        assert said in capsys.readouterr().err
