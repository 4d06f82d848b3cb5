"""What `ptq predict` writes, and the file that an interrupted one goes on from."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.output.predict_output import Unfinished, lines_of, shape_of, write_out
from orchestrator.cli.predict_rows import stdin_rows
from orchestrator.errors import BadData, BadInput
from orchestrator.tasks.ensemble import likeliest, mean, vote, weighted

ROWS = [{"text": 'a, "b"'}, {"text": "c\nd"}, {"text": "e"}]


def said(*pairs: tuple[str, float]) -> list[dict[str, Any]]:
    return [{"text": text, "probabilities": {"warm": warm, "cold": 1 - warm}} for text, warm in pairs]


ONE = [said(("warm", 0.6)), said(("cold", 0.2)), said(("x\ty\nz", 0.9))]
TWO = [said(("warm", 0.6), ("cold", 0.1)), said(("cold", 0.2), ("cold", 0.4)), said(("warm", 0.9), ("cold", 0.4))]


def lines(answers: list[Any], shape: Any, ensemble: str | None = None, weights: Sequence[float] = ()) -> list[str]:
    names = ["a1", "a2"][: len(answers[0])]
    return list(lines_of(ROWS, answers, names=names, shape=shape, ensemble=ensemble, weights=weights))


def test_plain_lines() -> None:
    assert lines(ONE, "text") == ["warm\n", "cold\n", "x\ty z\n"]
    assert lines(TWO, "text") == ["warm\tcold\n", "cold\tcold\n", "warm\tcold\n"]
    assert lines(TWO, "text", "mean") == ["cold\n", "cold\n", "warm\n"]
    assert lines(TWO, "text", "weighted", [0.9, 0.1]) == ["warm\n", "cold\n", "warm\n"]


def test_json_lines_hold_the_row_and_what_was_said() -> None:
    assert json.loads(lines(ONE, "json")[0]) == {**ROWS[0], "prediction": "warm"}
    assert json.loads(lines(TWO, "json")[0]) == {**ROWS[0], "predictions": {"a1": "warm", "a2": "cold"}}
    told = json.loads(lines(TWO, "json", "mean")[0])
    assert (told["prediction"], told["predictions"]) == ("cold", {"a1": "warm", "a2": "cold"})
    assert told["probabilities"] == {"warm": pytest.approx(0.35), "cold": pytest.approx(0.65)}


def test_csv_is_read_back_as_it_was() -> None:
    found = list(csv.DictReader(io.StringIO("".join(lines(TWO, "csv")), newline="")))
    assert [row["text"] for row in found] == [row["text"] for row in ROWS]
    assert [(row["a1"], row["a2"]) for row in found] == [("warm", "cold"), ("cold", "cold"), ("warm", "cold")]
    assert lines(ONE, "csv")[0] == "text,prediction\n"


def test_tsv_is_what_ptq_reads(tmp_path: Path) -> None:
    """There a quote is text and a line is a row: a tab and a line break become spaces."""
    (tmp_path / "x.tsv").write_text("".join(lines(ONE, "tsv")))
    found = [line.split("\t") for line in (tmp_path / "x.tsv").read_text().splitlines()]
    assert found == [["text", "prediction"], ['a, "b"', "warm"], ["c d", "cold"], ["e", "x y z"]]


def test_the_file_name_says_the_shape_unless_an_option_does() -> None:
    names = ["x.jsonl", "x.csv", "x.TSV", "x.txt", "x"]
    assert [shape_of(Path(name), as_json=False, as_csv=False) for name in names] == [
        "json",
        "csv",
        "tsv",
        "text",
        "text",
    ]
    assert shape_of(Path("x.csv"), as_json=True, as_csv=False) == "json"
    assert shape_of(None, as_json=False, as_csv=True) == "csv"
    with pytest.raises(BadInput, match="do not go together"):
        shape_of(None, as_json=True, as_csv=True)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=7))
def test_the_vote_is_the_majoritys_and_the_firsts_where_they_tie(texts: list[str]) -> None:
    counts = {text: texts.count(text) for text in texts}
    most = [text for text, count in counts.items() if count == max(counts.values())]
    assert vote(texts) == min(most, key=texts.index)


def test_the_mean_may_differ_from_the_vote() -> None:
    sure, unsure = {"warm": 0.9, "cold": 0.1}, {"warm": 0.45, "cold": 0.55}
    assert likeliest(mean([sure, unsure, unsure])) == "warm"
    assert vote(["warm", "cold", "cold"]) == "cold"


def keep(output: Path, count: int, digests: tuple[str, ...] = ("d",)) -> int:
    """Add answers as the program would; how many were there before."""
    with Unfinished.open(output, digests, ROWS) as unfinished:
        before = len(unfinished.answers)
        for found in ONE[before : before + count]:
            unfinished.keep(json.dumps(found) + "\n")
        return before


def test_an_interrupted_prediction_goes_on_after_its_last_whole_line(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert [keep(output, 1), keep(output, 1)] == [0, 1]
    path = tmp_path / "out.jsonl.unfinished"
    path.write_bytes(path.read_bytes()[:-9])  # a crash tore the second line
    assert [keep(output, 2), keep(output, 0)] == [1, 3]
    with Unfinished.open(output, ["d"], ROWS) as unfinished:
        assert unfinished.answers == ONE
        write_out(output, lines_of(ROWS, unfinished.answers, names=["a1"], shape="json"))
        unfinished.done()
    assert [json.loads(line)["prediction"] for line in output.read_text().splitlines()] == ["warm", "cold", "x\ty\nz"]
    assert list(tmp_path.iterdir()) == [output]


def test_what_is_unfinished_of_something_else_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "out"
    keep(output, 1)
    before = (tmp_path / "out.unfinished").read_bytes()
    with pytest.raises(BadInput, match="other rows or other artifacts"):
        keep(output, 1, digests=("another",))
    assert (tmp_path / "out.unfinished").read_bytes() == before


def test_two_commands_do_not_write_one_file(tmp_path: Path) -> None:
    with Unfinished.open(tmp_path / "out", ["d"], ROWS), pytest.raises(BadInput, match="another `ptq predict`"):
        keep(tmp_path / "out", 1)


def test_nothing_is_left_of_a_prediction_that_never_began(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Unfinished.open(tmp_path / "out", ["d"], ROWS):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.write_text("kept")

    def broken() -> Any:
        yield "a\n"
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_out(output, broken())
    assert output.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [output]


def from_stdin(text: str, fields: list[str], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return list(stdin_rows(fields))


def test_rows_from_a_pipe_have_the_form_of_a_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    line = '{"text": "a", "n": 1e5, "on": true, "deep": {"b": [1, 2.50], "a": null}}'
    [row] = from_stdin(line, ["text"], monkeypatch)
    assert row == {"text": "a", "n": "100000.0", "on": "true", "deep": '{"a":null,"b":[1,2.5]}'}
    assert from_stdin("a plain line\n\n[1]\n", ["text"], monkeypatch) == [{"text": "a plain line"}, {"text": "[1]"}]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a", "text": "b"}', "stands twice"),
        ('{"text": "a", "n": NaN}', "NaN is not JSON"),
        ('{"text": "\\ud83d"}', "half a character"),
        ('{"other": "a"}', "the row lacks text"),
    ],
)
def test_a_row_that_no_dataset_would_take_is_refused(line: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadData, match=said) as raised:
        from_stdin('{"text": "good"}\n' + line, ["text"], monkeypatch)
    assert raised.value.where == "standard input, line 2"


def test_a_weighted_ensemble_is_pets_mean_of_scores() -> None:
    """Logits times weights over the weights' sum; a softmax leaves out what all labels share."""
    logits, weights = [{"warm": 2.0, "cold": -1.0, "mild": 0.5}, {"warm": -3.0, "cold": 0.0, "mild": 1.0}], [0.25, 0.75]
    said = [{k: math.exp(v) / sum(map(math.exp, one.values())) for k, v in one.items()} for one in logits]
    scores = {label: 0.25 * logits[0][label] + 0.75 * logits[1][label] for label in logits[0]}
    total = sum(map(math.exp, scores.values()))
    expected = {label: math.exp(score) / total for label, score in scores.items()}
    assert weighted(said, weights) == pytest.approx(expected)
    assert weighted(said, [2.0, 6.0]) == pytest.approx(expected), "what counts is their share"
    assert weighted(said, [0.0, 0.0]) == pytest.approx(weighted(said, [1.0, 1.0]))
    assert likeliest(weighted([{"warm": 1.0, "cold": 0.0}, {"warm": 0.0, "cold": 1.0}], [0.4, 0.6])) == "cold"
