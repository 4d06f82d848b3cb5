"""How jobs leave the loop: stopped, failed, interrupted, on a full disk; and what their neighbours see of it."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from training_fixtures import MadeRun, make_base, make_dataset, make_run, recipe

from orchestrator.manifest import manifest_faults
from orchestrator.training import finish, job, scores, together
from orchestrator.training import step as steps
from orchestrator.training.job import TrainedJob
from orchestrator.training.stop import STOPPED_EXIT_CODE
from orchestrator.tuning import BaseHost, Prompt, RowBatch, injection

PROMPT = {"type": "prompt-tuning", "length": 3}
DROPPED = {"type": "prefix-tuning", "length": 2, "dropout": 0.3}
HEAD = {"type": "classify", "labels": ["warm", "cold"], "input": "the {text}", "head": {"dropout": 0.4}}


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def run_of(root: Path, recipes: list[dict[str, Any]], bases: dict[str, Path], dataset: Path, **more: Any) -> MadeRun:
    return make_run(root, recipes, base=bases["gpt2"], dataset=dataset, **more)


def series(run: MadeRun, number: int, split: str) -> dict[int, Any]:
    return {e["step"]: e["values"] for e in run.events(number, "metric") if e["split"] == split}


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_stop_inside_an_evaluation_costs_nothing(
    at: int, bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three jobs the second is being evaluated: the first has gone on, the third has not applied its gradient."""
    jobs = [recipe(DROPPED), recipe(PROMPT, train__eval_every=2), recipe(PROMPT, train__seeds=[4])]
    whole = run_of(tmp_path / "whole", jobs, bases, dataset)
    assert whole.train() == 0
    broken = run_of(tmp_path / "broken", jobs, bases, dataset)
    with monkeypatch.context() as patch:
        evaluated = scores.evaluate
        calls: list[int] = []

        def evaluate_and_stop(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == at:
                terminate()
            return evaluated(*args, **kwargs)

        patch.setattr(scores, "evaluate", evaluate_and_stop)
        assert broken.train() == STOPPED_EXIT_CODE
    again = run_of(tmp_path / "broken", jobs, bases, dataset, attempt=2)
    assert again.train() == 0
    for number in range(3):
        # Their rows have met other neighbours since: equal up to rounding.
        assert again.losses(number) == pytest.approx(whole.losses(number), rel=1e-5)
        assert series(again, number, "validation") == series(whole, number, "validation")
        folders = again.jobs[number].artifact(2), whole.jobs[number].artifact(1)
        found, expected = (load_file(folder / "prompt.safetensors") for folder in folders)
        assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_stop_that_comes_when_all_is_done_changes_nothing(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path / "run", [recipe(PROMPT)], bases, dataset)
    written, calls = finish.write_manifest, []

    def write_and_stop(folder: Path) -> str:
        calls.append(folder)
        if len(calls) == 2:  # the first is without scores
            terminate()
        return written(folder)

    monkeypatch.setattr(finish, "write_manifest", write_and_stop)
    assert run.train() == 0
    assert len(calls) == 2
    assert run.events(kind="artifact")
    assert not run.events(kind="stopped")


def test_a_job_that_lacks_only_its_artifact_makes_it(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_of(tmp_path / "run", [recipe(PROMPT)], bases, dataset)
    assert first.train() == 0
    prompt, metrics = first.prompt_bytes(), first.artifact()["metrics"]
    second = run_of(tmp_path / "run", [recipe(PROMPT)], bases, dataset, attempt=2)
    assert second.train() == 0
    assert second.events(kind="started")[1]["resumed_from"] == 6
    assert second.prompt_bytes(attempt=2) == prompt
    assert manifest_faults(second.jobs[0].artifact(2)) == []
    assert second.artifact(attempt=2)["metrics"] == metrics


def test_a_job_that_cannot_be_scored_keeps_its_prompt_and_leaves_its_neighbours_alone(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is resumed at its end, before the first step of the others."""
    done = run_of(tmp_path / "run", [recipe(PROMPT)], bases, dataset)
    assert done.train() == 0
    prompt = done.prompt_bytes()
    both = run_of(tmp_path / "run", [recipe(PROMPT), recipe(PROMPT)], bases, dataset, attempt=2)
    asked = scores._asked

    def broken(host: Any, job: TrainedJob, *args: Any, **kwargs: Any) -> Any:
        if job.spec.job == 1:
            raise ValueError("no score for this")
        return asked(host, job, *args, **kwargs)

    monkeypatch.setattr(scores, "_asked", broken)
    assert both.train() == 0
    (warning,) = both.events(0, "warning")
    assert warning["message"] == "there are no scores of the validation rows: no score for this"
    assert both.artifact(0, attempt=2)["unscored"] == {"validation": "no score for this"}
    assert both.artifact(0, attempt=2)["metrics"] == {}
    for number in (0, 1):
        assert both.prompt_bytes(number, attempt=2) == prompt


def test_an_interrupt_in_the_middle_of_a_step_saves_no_half_step(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_of(tmp_path / "whole", [recipe(PROMPT)], bases, dataset)
    assert whole.train() == 0
    broken = run_of(tmp_path / "broken", [recipe(PROMPT)], bases, dataset)
    with monkeypatch.context() as patch:
        step = together.adamw_together

        def interrupted(optimizers: Any) -> None:
            step(optimizers)
            if max(int(state["step"]) for state in optimizers[0].state.values()) == 4:
                raise KeyboardInterrupt

        patch.setattr(together, "adamw_together", interrupted)
        with pytest.raises(KeyboardInterrupt):
            broken.train()
    again = run_of(tmp_path / "broken", [recipe(PROMPT)], bases, dataset, attempt=2)
    assert again.train() == 0
    assert again.losses() == whole.losses()
    assert again.prompt_bytes(attempt=2) == whole.prompt_bytes()


def test_a_full_disk_ends_the_job_that_met_it(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path / "run", [recipe(PROMPT), recipe(PROMPT)], bases, dataset)
    saved = job.save_checkpoint

    def full(paths: Any, state: Any) -> None:
        if paths == run.jobs[0] and state.step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved(paths, state)

    monkeypatch.setattr(job, "save_checkpoint", full)
    assert run.train() == 1
    assert run.events(0, "failed")[0]["reason"] == "disk_full"
    assert run.events(1, "artifact")


def test_events_that_cannot_be_written_are_said_in_the_log(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """/dev/full takes nothing: the real error of a full disk, at the events themselves."""
    run = run_of(tmp_path / "run", [recipe(PROMPT), recipe(PROMPT)], bases, dataset)
    run.jobs[0].events.symlink_to("/dev/full")
    assert run.train() == 1
    assert "job 1 failed (disk_full)" in capsys.readouterr().out
    assert run.events(1, "artifact")


def test_a_job_of_another_base_is_refused(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    other = recipe(PROMPT)
    other["base"] = {"model": "tiny", "dtype": "bf16"}
    run = run_of(tmp_path / "run", [recipe(PROMPT), other], bases, dataset)
    assert run.train() == 1
    assert run.events(0, "artifact")
    assert run.events(1, "failed")[0]["reason"] == "bad_recipe"


@pytest.mark.parametrize("parts", [2, 3, 4, 9])
def test_accumulation_changes_nothing(parts: int, bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    """Nor does it with dropout on the prefix or before the head."""
    head = recipe({**DROPPED, "length": 3}, train__batch_size=5)
    head["task"] = HEAD
    jobs = [head, recipe({"type": "head"}, train__batch_size=3)]
    jobs[1]["task"] = HEAD
    bert = {"base": bases["bert"], "dataset": dataset, "kind": "masked"}
    whole = make_run(tmp_path / "whole", jobs, **bert)
    assert whole.train() == 0
    for one in jobs:
        one["train"] = {**one["train"], "accumulation": parts}
    split = make_run(tmp_path / "split", jobs, **bert)
    assert split.train() == 0
    for number in range(2):
        assert split.losses(number) == pytest.approx(whole.losses(number), rel=2e-5)
        found, expected = (load_file(r.jobs[number].artifact(1) / "prompt.safetensors") for r in (split, whole))
        assert_close(found, expected, rtol=2e-4, atol=2e-5)


def test_each_row_drops_other_numbers_of_the_prefix(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the released codes do, which repeat the prefix for every row before they draw."""
    seen: list[list[torch.Tensor]] = []
    before = steps.forward

    def forward(host: BaseHost, batch: RowBatch, prompts: list[Prompt], **how: Any) -> Any:
        seen.append([prompts[number].keys_values["decoder"] for number in batch.prompt_index.tolist()])
        return before(host, batch, prompts, **how)

    monkeypatch.setattr(steps, "forward", forward)
    jobs = [recipe({**DROPPED, "length": 20}, train__steps=2), recipe({**DROPPED, "dropout": 0.0}, train__steps=2)]
    assert run_of(tmp_path, jobs, bases, dataset).train() == 0
    for rows in seen:
        dropped, whole = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        kept = [row != 0 for row in dropped]
        assert all(not torch.equal(a, b) for i, a in enumerate(kept) for b in kept[:i])
        assert all(0.6 < float(k.double().mean()) < 0.8 for k in kept)
        assert all(row is whole[0] for row in whole)
        both = kept[0] & kept[1]
        assert torch.equal(dropped[0][both], dropped[1][both])
    assert len(seen) >= 2


def test_the_bases_dropout_is_resumed_and_reaches_no_neighbour(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy, plain = recipe(PROMPT, train__base_dropout=True, train__accumulation=2), recipe(PROMPT, train__seeds=[2])
    alone = [run_of(tmp_path / str(i), [one], bases, dataset) for i, one in enumerate((noisy, plain))]
    assert [run.train() for run in alone] == [0, 0]
    quiet = run_of(tmp_path / "quiet", [recipe(PROMPT, train__accumulation=2)], bases, dataset)
    assert quiet.train() == 0
    assert quiet.losses() != pytest.approx(alone[0].losses(), rel=1e-3)
    fused = run_of(tmp_path / "fused", [noisy, plain], bases, dataset)
    with monkeypatch.context() as patch:
        set_rates = TrainedJob.set_rates
        patch.setattr(TrainedJob, "set_rates", lambda self: (self.step == 2 and terminate(), set_rates(self))[1])
        assert fused.train() == STOPPED_EXIT_CODE
    again = run_of(tmp_path / "fused", [noisy, plain], bases, dataset, attempt=2)
    assert again.train() == 0
    for number in range(2):
        assert again.losses(number) == pytest.approx(alone[number].losses(), rel=2e-5)


@pytest.mark.parametrize("base_dropout", [False, True])
def test_gradient_checkpointing_changes_nothing(
    base_dropout: bool, bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer that is computed again drops what it dropped."""
    prefix = {"type": "prefix-tuning", "length": 2}
    jobs = [recipe(prefix, train__base_dropout=base_dropout, train__gradient_checkpointing=on) for on in (False, True)]
    again: list[bool] = []
    checkpoint = injection.checkpoint
    monkeypatch.setattr(
        injection, "checkpoint", lambda *args, **more: (again.append(True), checkpoint(*args, **more))[1]
    )
    runs = [run_of(tmp_path / str(number), [job], bases, dataset) for number, job in enumerate(jobs)]
    assert runs[0].train() == 0
    assert not again
    assert runs[1].train() == 0
    assert len(again) == 2 * 6  # layers, steps
    assert runs[1].losses() == pytest.approx(runs[0].losses(), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "kind", "dtype"),
    [("gpt2", "causal", "bf16"), ("t5", "seq2seq", "bf16"), ("bert", "masked", "bf16")],
)
def test_a_base_in_half_precision(
    name: str, kind: str, dtype: str, bases: dict[str, Path], dataset: Path, tmp_path: Path
) -> None:
    """Trains and scores; what is trained and saved is fp32, and near to what an fp32 base gives."""
    short = {"train__steps": 2, "train__baseline": False}
    jobs = [recipe(PROMPT, **short), recipe({**DROPPED, "dropout": 0.0}, **short)]
    if kind == "masked":
        for one in jobs:
            one["task"] = {**HEAD, "head": {"pooling": "mean"}}
    losses = {}
    for precision in ("fp32", dtype):
        made = [{**one, "base": {"model": "tiny", "dtype": precision}} for one in jobs]
        run = make_run(tmp_path / precision, made, base=bases[name], dataset=dataset, kind=kind)
        assert run.train() == 0
        losses[precision] = [loss for number in range(2) for loss in run.losses(number).values()]
        saved = load_file(run.jobs[0].artifact(1) / "prompt.safetensors")
        assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert len(losses[dtype]) == 4
    assert losses[dtype] == pytest.approx(losses["fp32"], rel=0.03)


def test_rows_that_are_not_kept_are_tokenised_again(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_of(tmp_path / "whole", [recipe(PROMPT, train__steps=12)], bases, dataset)
    assert whole.train() == 0
    kept: list[int] = []
    stepped = TrainedJob.stepped
    monkeypatch.setattr(TrainedJob, "stepped", lambda self: (kept.append(len(self._examples)), stepped(self))[1])
    monkeypatch.setattr(job, "_CACHE", 10_000)
    few = run_of(tmp_path / "few", [recipe(PROMPT, train__steps=12)], bases, dataset)
    assert few.train() == 0
    assert 0 < kept[-1] < 20  # of the 40 rows that it has seen
    assert few.losses() == whole.losses()


def test_a_batch_larger_than_the_data_runs_over_the_epochs_end(bases: dict[str, Path], tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", train=3, validation=0)
    run = run_of(tmp_path / "run", [recipe(PROMPT, train__batch_size=8)], bases, dataset)
    assert run.train() == 0
    assert list(run.losses()) == list(range(1, 7))
    assert run.artifact()["metrics"] == {}  # a split without rows is no split


def test_text_fields_may_be_empty_or_longer_than_the_context(tmp_path: Path) -> None:
    from orchestrator.data.store import SplitWriter

    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation"):
        writer = SplitWriter(folder / f"{split}.arrow", ["text", "target", "label"])
        for text in ("", "red cat " * 200, "</s> [MASK] <pad>", "stone"):
            writer.add([text, "bird", "warm"])
        writer.close()
    for name, kind, task in [
        ("gpt2", "causal", {"type": "generate", "input": "{text}", "target": "{target}", "max_new_tokens": 4}),
        ("gpt2", "causal", {"type": "classify", "input": "{text}", "labels": {"warm": "warm", "cold": "cold"}}),
        ("bert", "masked", {"type": "classify", "input": "{text} [MASK]", "labels": {"warm": "warm", "cold": "cold"}}),
        ("bert", "masked", {**HEAD, "input": "{text}"}),
    ]:
        jobs = [recipe(DROPPED, train__steps=2), recipe(PROMPT, train__steps=2)]
        for one in jobs:
            one["task"] = task
        base = make_base(tmp_path / f"base-{name}", name)
        run = make_run(tmp_path / f"{name}-{task['input']}", jobs, base=base, dataset=folder, kind=kind)
        assert run.train() == 0
        assert all(0 <= value <= 1 for value in run.artifact()["metrics"]["validation"].values())
