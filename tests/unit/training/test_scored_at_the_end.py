"""What was trained is there before anything is asked of it, and nothing is asked twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from test_resume import interrupted_at
from training_fixtures import MadeRun, make_run, recipe

from orchestrator.data.store import SplitWriter
from orchestrator.manifest import manifest_faults
from orchestrator.paths import read_json
from orchestrator.training import evaluate, finish, parts, run
from orchestrator.training.job import TrainedJob
from orchestrator.training.stop import STOPPED_EXIT_CODE

PROMPT = {"type": "prompt-tuning", "length": 3}
TAGS = {"type": "tag", "labels": ["O", "B-X"]}
SPANS = {"type": "span", "max_input_tokens": 40}


def rows_of(folder: Path, fields: list[str], **splits: list[list[str]]) -> Path:
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        writer = SplitWriter(folder / f"{split}.arrow", fields)
        for row in rows:
            writer.add(row)
        writer.close()
    return folder


@pytest.fixture(scope="module")
def tested(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With test rows too: 10 and 10 rows, three batches each."""
    folder = shutil.copytree(dataset, tmp_path_factory.mktemp("tested") / "data")
    shutil.copy(folder / "validation.arrow", folder / "test.arrow")
    return folder


class Asked:
    """Notes each turn of an evaluation, and stops the program behind one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_behind: int | None = None) -> None:
        self.turns = self.batches = 0
        turn = evaluate._answer_turn

        def counted(*args: Any) -> None:
            turn(*args)
            self.turns += 1
            self.batches += sum(1 for own in args[3] if own)
            if self.turns == stop_behind:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(evaluate, "_answer_turn", counted)


def test_a_last_evaluation_goes_on_where_it_was_left(
    bases: dict[str, Path], tested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three batches of validation and of test rows, one of each at a try: with each it comes nearer to its end."""
    raw = recipe(PROMPT, train__baseline=False)
    made = {"base": bases["gpt2"], "dataset": tested}
    whole = make_run(tmp_path / "whole", [raw], **made)
    assert whole.train() == 0
    asked = []
    for attempt in range(1, 10):
        run = make_run(tmp_path / "run", [raw], attempt=attempt, **made)
        with monkeypatch.context() as patch:
            counted = Asked(patch, stop_behind=1)
            code = run.train()
        asked.append(counted.turns)
        if code == 0:
            break
        assert code == STOPPED_EXIT_CODE
    assert sum(asked) == 3  # each batch once
    assert len(asked) > 2
    found, expected = run.artifact(attempt=attempt), whole.artifact()
    assert set(expected["metrics"]) == {"validation", "test"}
    assert {key: found[key] for key in ("metrics", "samples")} == {key: expected[key] for key in ("metrics", "samples")}
    assert not run.jobs[0].answers.exists()


def test_what_a_stopped_try_has_left_of_its_artifact_is_taken_away(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"base": bases["gpt2"], "dataset": dataset}
    first = make_run(tmp_path, [recipe(PROMPT, train__baseline=False)], **made)
    with monkeypatch.context() as patch:
        Asked(patch, stop_behind=1)
        assert first.train() == STOPPED_EXIT_CODE
    assert first.jobs[0].artifact(1).exists()
    second = make_run(tmp_path, [recipe(PROMPT, train__baseline=False)], attempt=2, **made)
    assert second.train() == 0
    assert [path.name for path in second.jobs[0].root.glob("*artifact*")] == ["artifact-2"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_evaluation_in_between_goes_on_too(
    jobs: int, bases: dict[str, Path], tested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = [recipe(PROMPT, train__eval_every=3, train__baseline=False, train__seeds=[n]) for n in range(1, jobs + 1)]
    made = {"base": bases["gpt2"], "dataset": tested}
    whole = make_run(tmp_path / "whole", raw, **made)
    with monkeypatch.context() as patch:
        turns = Asked(patch)
        assert whole.train() == 0
    with monkeypatch.context() as patch:
        before = Asked(patch, stop_behind=2)
        assert make_run(tmp_path / "run", raw, **made).train() == STOPPED_EXIT_CODE
    second = make_run(tmp_path / "run", raw, attempt=2, **made)
    with monkeypatch.context() as patch:
        behind = Asked(patch)
        assert second.train() == 0
    if jobs == 1:  # two jobs are scored by themselves from then on, as after anything that is amiss
        assert before.turns + behind.turns == turns.turns
    for number in range(jobs):
        assert second.artifact(number, attempt=2)["metrics"] == whole.artifact(number)["metrics"]


def test_the_prompt_lies_there_before_it_is_scored(
    bases: dict[str, Path], tested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", [recipe(PROMPT)], base=bases["gpt2"], dataset=tested)
    seen: list[dict[str, Any]] = []
    asked = finish.evaluate_job

    def looked(*args: Any, **kwargs: Any) -> Any:
        folder = run.jobs[0].artifact(1)
        assert manifest_faults(folder) == []
        seen.append(read_json(folder / "artifact.json"))
        return asked(*args, **kwargs)

    monkeypatch.setattr("orchestrator.training.loop.final_scores", lambda *args: {})
    monkeypatch.setattr(finish, "evaluate_job", looked)
    assert run.train() == 0
    assert len(seen) == 4
    assert seen[0]["unscored"] == {"validation": "not scored yet", "test": "not scored yet"}
    assert run.artifact()["unscored"] == {}
    assert set(run.artifact()["metrics"]) == {"validation", "test"}


def test_a_split_that_cannot_be_scored_costs_its_scores_alone(
    bases: dict[str, Path], tested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", [recipe(PROMPT, train__baseline=False)], base=bases["gpt2"], dataset=tested)
    score, calls = parts.score, []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) in {2, 4}:  # of the test rows, together with the others and by itself
            raise ZeroDivisionError("no such score")
        return score(*args, **kwargs)

    monkeypatch.setattr(parts, "score", failing)
    assert run.train() == 0
    facts = run.artifact()
    assert set(facts["metrics"]) == {"validation"}
    assert facts["unscored"] == {"test": "the answers cannot be scored: no such score"}
    assert [event["message"] for event in run.events(kind="warning")] == [
        "there are no scores of the test rows: the answers cannot be scored: no such score"
    ]


@pytest.mark.parametrize(
    ("task", "fields", "good", "bad", "what"),
    [
        (TAGS, ["tokens", "tags"], ["red cat", "O B-X"], ["red cat", "O"], "a row has 2 words and 1 tags"),
        (
            SPANS,
            ["question", "context", "answers"],
            ["the", "red cat", "cat"],
            ["the", "  ", "cat"],
            "a row's context is empty",
        ),
        (
            SPANS | {"max_input_tokens": 384},
            ["question", "context", "answers"],
            ["the", "red cat", "cat"],
            ["red " * 100, "red cat", "cat"],
            "the question leaves no room for the context",
        ),
    ],
)
def test_a_row_that_cannot_be_scored_is_found_before_the_first_step(
    task: dict[str, Any], fields: list[str], good: list[str], bad: list[str], what: str, bases: dict[str, Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    data = rows_of(tmp_path / "data", fields, train=[good] * 4, validation=[good], test=[good, good, bad])
    raw = recipe({"type": "p-tuning-v2", "length": 2}, task=task)
    run = make_run(tmp_path / "run", [raw], base=bases["bert"], dataset=data, kind="masked")
    assert run.train() == 1
    (failed,) = run.events(kind="failed")
    assert failed["reason"] == "bad_data"
    assert f"tiny@1, test row 3: {what}" in failed["message"]
    assert not run.losses()


def cut_warnings(run: MadeRun) -> list[str]:
    return [event["message"] for event in run.events(kind="warning")]


def test_what_was_cut_is_told_once(bases: dict[str, Path], tmp_path: Path) -> None:
    """Of the rows, i % 4 + 1 things in the input; targets of one to five words."""
    rows = [[" and ".join(["red cat"] * (1 + i % 4)), " ".join(["bird"] * (1 + i % 5)), "warm"] for i in range(20)]
    data = rows_of(tmp_path / "data", ["text", "target", "label"], train=rows, validation=rows[:1])
    raw = recipe(PROMPT, task__max_input_tokens=8, task__max_new_tokens=4, train__steps=12)
    run = make_run(tmp_path / "run", [raw], base=bases["gpt2"], dataset=data)
    assert run.train() == 0
    inputs = sum(1 + 3 * (1 + i % 4) - 1 > 8 for i in range(20))
    targets = sum((1 + i % 5) > 4 for i in range(20))  # with four words a target loses its end mark, and no word
    (told,) = cut_warnings(run)
    assert told.startswith("of 20 training rows that were read, ")
    assert f"{inputs} are longer than task.max_input_tokens" in told
    assert f"{targets} have targets longer than task.max_new_tokens" in told
    fits = make_run(tmp_path / "fits", [recipe(PROMPT, task__max_new_tokens=6)], base=bases["gpt2"], dataset=data)
    assert fits.train() == 0
    assert cut_warnings(fits) == []


def test_what_was_cut_is_told_of_all_rows_behind_a_stop(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who goes on counts anew: rows that were read before the stop come again in the next pass."""
    rows = [["red cat " * (1 + i % 4), "bird", "warm"] for i in range(20)]
    data = rows_of(tmp_path / "data", ["text", "target", "label"], train=rows, validation=rows[:1])
    raw = recipe(PROMPT, task__max_input_tokens=8, train__steps=20)
    with monkeypatch.context() as patch:
        interrupted_at(3, patch)
        assert make_run(tmp_path / "run", [raw], base=bases["gpt2"], dataset=data).train() == STOPPED_EXIT_CODE
    again = make_run(tmp_path / "run", [raw], base=bases["gpt2"], dataset=data, attempt=2)
    assert cut_warnings(again) == []
    monkeypatch.setattr(run, "refuse_unscorable", lambda _: pytest.fail("the rows were looked at before"))
    assert again.train() == 0
    (told,) = cut_warnings(again)
    assert told.startswith("of 20 training rows that were read, 5 are longer than task.max_input_tokens")


def test_what_was_cut_under_several_patterns_is_one_row(bases: dict[str, Path], tmp_path: Path) -> None:
    rows = [["red cat " * (1 + i % 4), "bird", "warm"] for i in range(8)]
    data = rows_of(tmp_path / "data", ["text", "target", "label"], train=rows, validation=rows[:1])
    task = {"type": "classify", "input": "the {text} is [MASK]", "labels": {"warm": ["red"], "cold": ["black"]}}
    raw = recipe({"type": "pet", "patterns": ["[MASK] and {text}"]}, task=task | {"max_input_tokens": 9})
    del raw["train"]["lr"]
    raw["train"]["base_lr"] = 1e-3
    run = make_run(tmp_path / "run", [raw], base=bases["bert"], dataset=data, kind="masked")
    assert run.train() == 0
    (told,) = cut_warnings(run)
    assert told.startswith("of 8 training rows that were read, 2 are longer than task.max_input_tokens")


def test_what_nothing_has_trained_is_scored_once(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompt design without demonstrations is the untuned base."""
    raw = recipe({"type": "prompt-design", "shots": 0})
    raw["train"] = {"eval_batch_size": 4}
    run = make_run(tmp_path / "run", [raw], base=bases["gpt2"], dataset=dataset)
    counted = Asked(monkeypatch)
    assert run.train() == 0
    assert counted.batches == 3
    assert run.artifact()["baseline"] == run.artifact()["metrics"] != {}


def test_a_joiner_whose_files_cannot_be_read_ends_alone(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.jobspec import Ticket
    from orchestrator.paths import JobPaths

    run = make_run(tmp_path / "run", [recipe(PROMPT, train__steps=20)], base=bases["gpt2"], dataset=dataset)
    run.folder.inbox.mkdir()
    run.folder.joined.mkdir()
    broken = JobPaths(tmp_path / "run" / "jobs" / "2")
    broken.spec.parent.mkdir()
    broken.spec.write_text("{")
    stepped = TrainedJob.stepped

    def deliver(job: TrainedJob) -> None:
        stepped(job)
        if job.step == 1:
            assert Ticket(2, 1, str(broken.root), None).deliver(run.folder)

    monkeypatch.setattr(TrainedJob, "stepped", deliver)
    monkeypatch.setattr("orchestrator.training.company.LOOK_SECONDS", 0.0)
    assert run.train() == 1
    assert run.events(0, "artifact")
    (failed,) = [json.loads(line) for line in broken.events.read_text().splitlines()]
    assert (failed["kind"], failed["attempt"], failed["alone"]) == ("failed", 1, True)
    assert "its files cannot be read" in failed["message"]
