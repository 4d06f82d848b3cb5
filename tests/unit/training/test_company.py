"""Jobs that come and go while others train are what they are alone."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from isolation import Stage
from safetensors.torch import load_file
from torch.testing import assert_close
from training_fixtures import MadeRun, make_run, recipe

from orchestrator.jobspec import JobSpec, Ticket, close_inbox, jobs_seen
from orchestrator.paths import RunPaths
from orchestrator.training import loop, step

PROMPT = {"type": "prompt-tuning", "length": 3}
PREFIX = {"type": "prefix-tuning", "length": 2, "dropout": 0.3}
LSTM = {"type": "p-tuning", "length": 4, "reparameterization": {"type": "lstm", "dropout": 0.2}}
MLP = {"type": "p-tuning", "length": 5, "reparameterization": {"type": "mlp"}}


def mixed() -> list[dict[str, Any]]:
    return [
        recipe(PROMPT, train__steps=12, train__lr=0.3, train__clip=None),
        recipe(PREFIX, train__steps=7, train__batch_size=2, train__seeds=[3], train__accumulation=2),
        recipe(LSTM, train__steps=9, train__batch_size=3, train__clip=0.01, train__eval_every=4),
        recipe(MLP, train__steps=5, train__seeds=[9], train__warmup=0.5, train__schedule="cosine"),
    ]


def assert_as_if_alone(run: MadeRun, number: int, alone: MadeRun, attempt: int = 1) -> None:
    assert run.losses(number) == pytest.approx(alone.losses(), rel=2e-5)
    folders = run.jobs[number].artifact(attempt), alone.jobs[0].artifact(1)
    found, expected = (load_file(folder / "prompt.safetensors") for folder in folders)
    assert_close(found, expected, rtol=2e-4, atol=2e-5)
    assert run.artifact(number, attempt)["steps"] == alone.artifact()["steps"]
    assert run.artifact(number, attempt)["metrics"] == alone.artifact()["metrics"]


def alone(root: Path, one: dict[str, Any], bases: dict[str, Path], dataset: Path) -> MadeRun:
    made = make_run(root, [one], base=bases["gpt2"], dataset=dataset)
    assert made.train() == 0
    return made


@pytest.fixture(scope="module")
def solos(bases: dict[str, Path], dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[MadeRun]:
    root = tmp_path_factory.mktemp("solos")
    return [alone(root / str(number), one, bases, dataset) for number, one in enumerate(mixed())]


def test_jobs_that_join_at_random_steps_are_as_if_alone(
    solos: list[MadeRun],
    bases: dict[str, Path],
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(make_run(tmp_path, mixed(), base=bases["gpt2"], dataset=dataset))
    chance = random.Random(1)
    script: dict[int, list[int]] = {}
    for number in (1, 2, 3):
        script.setdefault(chance.randint(1, 12), []).append(number)
    assert (
        stage.play(monkeypatch, {at: lambda who=who: [stage.join(n) for n in who] for at, who in script.items()}) == 0
    )
    for number, solo in enumerate(solos):
        assert_as_if_alone(stage.made, number, solo)
    assert jobs_seen(stage.made.folder) == [2, 3, 4]
    assert not stage.made.folder.inbox.exists()


def test_a_preempted_job_goes_on_in_another_fused_run_and_a_cancelled_one_disturbs_nobody(
    solos: list[MadeRun], bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Stage(make_run(tmp_path, mixed(), base=bases["gpt2"], dataset=dataset), first=4)
    stale = {2: lambda: first.ask(1, "cancel", attempt=7)}  # meant for another try: not heard
    assert first.play(monkeypatch, stale | {4: lambda: first.ask(0, "preempt"), 3: lambda: first.ask(2, "cancel")}) == 0
    assert first.made.events(0, "stopped") == [{**first.made.events(0, "stopped")[0], "step": 4, "why": "preempt"}]
    assert first.made.events(2, "stopped")[0]["why"] == "cancel"
    assert not first.made.jobs[2].artifact(1).exists()
    for number in (1, 3):
        assert_as_if_alone(first.made, number, solos[number])
    again = make_run(tmp_path, mixed(), base=bases["gpt2"], dataset=dataset, attempt=2)
    (tmp_path / "run" / "joined").rename(tmp_path / "run" / "joined before")
    (tmp_path / "run" / "inbox.closed").rename(tmp_path / "run" / "inbox before")
    second = Stage(replace(again, jobs=[again.jobs[2], again.jobs[0]]))
    assert second.play(monkeypatch, {2: lambda: second.join(1)}) == 0
    assert second.made.events(1, "started")[-1]["resumed_from"] == 4
    assert_as_if_alone(second.made, 1, solos[0], attempt=2)
    assert_as_if_alone(second.made, 0, solos[2], attempt=2)  # after `ptq retry`


def test_one_that_fails_or_is_out_of_time_leaves_alone(
    solos: list[MadeRun], bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = recipe(PROMPT, train__steps=100_000)
    late["resources"] = {"time_limit": 0.2}
    jobs = [mixed()[0], recipe(PROMPT, train__lr=1e30, train__clip=None), late, {**mixed()[3], "dataset": "gone"}]
    stage = Stage(make_run(tmp_path, jobs, base=bases["gpt2"], dataset=dataset))
    nowhere = JobSpec.read(stage.made.jobs[3].spec)
    replace(nowhere, dataset=replace(nowhere.dataset, path="/nowhere")).write(stage.made.jobs[3].spec)
    assert stage.play(monkeypatch, {n + 1: lambda n=n: stage.join(n) for n in (1, 2, 3)}) == 1
    reasons = [[(e["reason"], e["alone"]) for e in stage.made.events(n, "failed")] for n in range(4)]
    assert reasons[:3] == [[], [("nan_loss", True)], [("timeout", True)]]
    assert reasons[3][0][1]
    assert stage.made.jobs[2].checkpoints.exists()  # `ptq retry` goes on from here
    assert_as_if_alone(stage.made, 0, solos[0])


def test_an_empty_run_keeps_its_base_warm_until_its_time_is_over(
    solos: list[MadeRun], bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(make_run(tmp_path, mixed(), base=bases["gpt2"], dataset=dataset), keep_warm_seconds=0.3)
    rests: list[float] = []
    monkeypatch.setattr(loop.time, "sleep", lambda seconds: rests.append(seconds) or stage.join(3))
    assert stage.play(monkeypatch, {}) == 0
    assert rests
    assert_as_if_alone(stage.made, 3, solos[3])


def test_a_ticket_is_never_lost_between_a_closing_run_and_a_worker(tmp_path: Path) -> None:
    run = RunPaths(tmp_path)
    ticket = Ticket(1, 1, "/jobs/1", None)
    assert not ticket.deliver(run)
    run.inbox.mkdir()
    run.joined.mkdir()
    assert ticket.deliver(run)
    assert ticket.deliver(run)
    assert not close_inbox(run)  # somebody came: it is open again
    assert run.inbox.exists()
    (run.inbox / ticket.name).rename(run.joined / ticket.name)
    assert close_inbox(run)
    assert ticket.deliver(run)  # it has been taken
    assert not Ticket(2, 1, "/jobs/2", None).deliver(run)


@pytest.mark.parametrize("most", [1, 3, 7])
def test_a_step_that_runs_out_of_memory_is_done_again_in_smaller_parts(
    most: int,
    solos: list[MadeRun],
    bases: dict[str, Path],
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """13 rows a step, and memory for `most` at once."""
    stage = Stage(make_run(tmp_path, mixed(), base=bases["gpt2"], dataset=dataset), first=4)
    forward = step.forward
    sizes: list[int] = []

    def small(host: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory (in a test)")
        return forward(host, batch, *args, **kwargs)

    monkeypatch.setattr(step, "forward", small)
    assert stage.play(monkeypatch, {}) == 0
    for number, solo in enumerate(solos):
        assert_as_if_alone(stage.made, number, solo)
    failed = [size for size in sizes if size > most]
    assert failed == sorted(failed, reverse=True)  # it learns, and does not ask for as much again
    assert len(failed) <= 5


def test_a_job_whose_single_row_is_too_large_fails_alone(
    solos: list[MadeRun], bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [*mixed()[:2], recipe({"type": "prompt-tuning", "length": 40}, train__steps=3)]
    stage = Stage(make_run(tmp_path, jobs, base=bases["gpt2"], dataset=dataset), first=3)
    forward = step.forward

    def no_long_rows(host: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        if int(batch.lengths.max()) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory (in a test)")
        return forward(host, batch, *args, **kwargs)

    monkeypatch.setattr(step, "forward", no_long_rows)
    assert stage.play(monkeypatch, {}) == 1
    assert [(e["reason"], e["alone"]) for e in stage.made.events(2, "failed")] == [("cuda_oom", True)]
    for number in range(2):
        assert_as_if_alone(stage.made, number, solos[number])
