"""What one of several ranks meets alone, all of them hear of: nobody waits for ever, and the right job ends."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import DeepSpeedPlugin
from ranks import on_two_ranks
from training_fixtures import MadeRun, make_run, recipe
from transformers.integrations import unset_hf_deepspeed_config
from transformers.integrations.deepspeed import deepspeed_config

from orchestrator.cost import Cost
from orchestrator.events import EventWriter
from orchestrator.jobspec import JobSpec, RunSpec
from orchestrator.training import calibrate, evaluate, finish, job, label_search, run, search, step
from orchestrator.training.distributed import Processes, load_as
from orchestrator.training.job import TrainedJob
from orchestrator.tuning.host import BaseHost

PROMPT = {"type": "prompt-tuning", "length": 3}
PREFIX = {"type": "prefix-tuning", "length": 2, "dropout": 0.2}
JOBS = [
    recipe(PROMPT, train__steps=4, train__eval_every=2, train__lr=0.3),
    recipe(PREFIX, train__steps=3, train__seeds=[4]),
]

Spoil = Callable[[int], None]


def failing(owner: Any, name: str, rank: int, error: Exception, calls: set[int]) -> Spoil:
    """In one rank some calls (counted from 1) of a function raise an error."""

    def spoil(number: int) -> None:
        if number != rank:
            return
        whole, count = getattr(owner, name), [0]

        def broken(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] in calls:
                raise error
            return whole(*args, **kwargs)

        setattr(owner, name, broken)

    return spoil


def both(root: Path, bases: dict[str, Path], dataset: Path, **changes: Any) -> MadeRun:
    made = make_run(root, JOBS, base=bases["gpt2"], dataset=dataset, processes=2)
    replace(RunSpec.read(made.folder.spec), **changes).write(made.folder.spec)
    return made


@pytest.fixture(scope="module")
def whole(bases: dict[str, Path], dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    """Both jobs in one process."""
    made = make_run(tmp_path_factory.mktemp("whole"), JOBS, base=bases["gpt2"], dataset=dataset)
    assert made.train() == 0
    return made


def same(made: MadeRun, whole: MadeRun, *numbers: int) -> None:
    for number in numbers:
        assert made.losses(number) == pytest.approx(whole.losses(number), rel=1e-5)
        assert made.artifact(number)["metrics"] == whole.artifact(number)["metrics"]
        assert made.artifact(number)["baseline"] == whole.artifact(number)["baseline"]


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory (in a test)"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=["cuda", "host"])
def test_memory_that_ends_in_one_rank_changes_nothing(
    error: Exception, bases: dict[str, Path], dataset: Path, tmp_path: Path, whole: MadeRun
) -> None:
    made = both(tmp_path, bases, dataset)
    assert on_two_ranks(made, failing(step, "forward", 1, error, {2})) == [0, 0]
    same(made, whole, 0, 1)


@pytest.mark.parametrize("calls", [{1}, {2}, {4}, {8}, {15}])
def test_memory_that_ends_in_one_rank_while_a_step_is_measured(
    calls: set[int],
    bases: dict[str, Path],
    dataset: Path,
    tmp_path: Path,
    whole: MadeRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both ranks go on, whether there are figures in the end or not, and train what they would have trained."""
    monkeypatch.setattr(calibrate, "SECONDS", 60.0)  # on a busy machine too
    costs = tmp_path / "costs" / "base.json"
    made = both(tmp_path, bases, dataset, calibration=str(costs))
    assert on_two_ranks(made, failing(calibrate, "forward", 1, NO_MEMORY[0], calls)) == [0, 0]
    same(made, whole, 0, 1)
    assert (Cost.read(costs) is not None) == (calls == {15})  # memory ended on the third rung


#: What is spoiled, in which rank, at which call; the job that fails, for which reason.
ALONE: dict[str, tuple[Any, str, int, Exception, set[int], int, str]] = {
    "a job is opened": (TrainedJob, "_resume", 1, OSError("cannot be read"), {2}, 1, "crashed"),
    "it says that it starts": (EventWriter, "flush", 0, OSError(errno.ENOSPC, "full"), {2}, 1, "disk_full"),
    "an evaluation": (evaluate, "answer", 1, RuntimeError("a kernel"), {1, 2}, 0, "crashed"),
    "a checkpoint": (job, "save_checkpoint", 0, OSError(errno.ENOSPC, "full"), {2}, 1, "disk_full"),
    "the artifact": (finish, "save_prompt", 0, OSError(errno.ENOSPC, "full"), {1}, 1, "disk_full"),
    "the checksum": (BaseHost, "checksum", 1, torch.OutOfMemoryError("no room"), {2}, 1, "cuda_oom"),
}


@pytest.mark.parametrize("what", ALONE)
def test_what_one_rank_meets_ends_one_job(
    what: str, bases: dict[str, Path], dataset: Path, tmp_path: Path, whole: MadeRun
) -> None:
    owner, name, rank, error, calls, failed, reason = ALONE[what]
    made = both(tmp_path, bases, dataset)
    assert on_two_ranks(made, failing(owner, name, rank, error, calls)) == [1, 1]
    (said,) = made.events(failed, "failed")
    assert (said["reason"], said["alone"]) == (reason, True)
    assert str(error) in said["message"]
    same(made, whole, 1 - failed)


def test_a_step_that_breaks_in_one_rank_ends_the_run_in_its_own_words(
    bases: dict[str, Path], dataset: Path, tmp_path: Path
) -> None:
    made = both(tmp_path, bases, dataset)
    assert on_two_ranks(made, failing(step, "forward", 1, ValueError("in the second rank"), {2})) == [1, 1]
    for number in range(2):
        (said,) = made.events(number, "failed")
        assert (said["reason"], said["alone"]) == ("crashed", False)
        assert "in the second rank" in said["message"]


def test_words_are_chosen_by_all_ranks_together(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    """Also where memory ends in one of them."""
    words = recipe({"type": "autoprompt", "candidates": 5, "init": {"type": "vocab"}}, train__steps=4)
    del words["train"]["lr"]
    words["task"] = {
        "type": "classify",
        "labels": {"warm": ["red"], "cold": ["black"]},
        "input": "[T:2] {text} [T] [MASK]",
    }
    where: dict[str, Any] = {"base": bases["bert"], "dataset": dataset, "kind": "masked"}
    one = make_run(tmp_path / "one", [words], **where)
    assert one.train() == 0
    two = make_run(tmp_path / "two", [words], processes=2, **where)
    assert on_two_ranks(two, failing(search, "forward", 1, NO_MEMORY[0], {3})) == [0, 0]
    assert two.artifact()["words"] == one.artifact()["words"]
    assert two.losses() == pytest.approx(one.losses(), rel=1e-5)


def test_label_words_that_one_rank_cannot_find_end_their_job(
    bases: dict[str, Path], dataset: Path, tmp_path: Path
) -> None:
    """The other rank has found its own, and must not wait for ever for somebody to tell."""
    words = recipe({"type": "autoprompt", "candidates": 5, "label_words": 1, "init": {"type": "vocab"}})
    del words["train"]["lr"]
    words["task"] = {"type": "classify", "labels": {"warm": ["red"], "cold": ["black"]}, "input": "[T:2] {text} [MASK]"}
    made = make_run(tmp_path, [words], base=bases["bert"], dataset=dataset, kind="masked", processes=2)
    assert on_two_ranks(made, failing(label_search, "_searched", 1, NO_MEMORY[0], {1})) == [1, 1]
    (said,) = made.events(0, "failed")
    assert (said["reason"], said["alone"]) == ("cuda_oom", True)


def test_ranks_share_what_patterns_are_measured_on(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    one = recipe({"type": "pet", "weights": "accuracy", "patterns": ["[MASK] and {text}"]})
    del one["train"]["lr"], one["train"]["steps"]
    one["task"] = {"type": "classify", "labels": {"warm": ["red"], "cold": ["black"]}, "input": "the {text} is [MASK]"}
    where: dict[str, Any] = {"base": bases["bert"], "dataset": dataset, "kind": "masked"}
    alone, two = make_run(tmp_path / "one", [one], **where), make_run(tmp_path / "two", [one], processes=2, **where)
    assert alone.train() == 0
    assert on_two_ranks(two, lambda _: None) == [0, 0]
    assert two.artifact()["patterns"] == alone.artifact()["patterns"]
    assert two.artifact()["metrics"] == alone.artifact()["metrics"]


def test_ranks_with_a_sharded_base_run_every_forward(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, whole: MadeRun
) -> None:
    """Else they would wait for each other for ever; `make proof-isolation` and the acceptance tests shard it really."""
    made, counts = both(tmp_path, bases, dataset), tmp_path / "counts"
    counts.mkdir()

    def count(number: int) -> None:
        asked = BaseHost.embed

        def embed(self: BaseHost, ids: torch.Tensor) -> torch.Tensor:
            with (counts / str(number)).open("a") as file:
                file.write(f"{list(ids.shape)}\n")
            return asked(self, ids)

        run.load_as = run.place = lambda *_: None
        BaseHost.embed = embed

    assert on_two_ranks(made, count, zero=3) == [0, 0]
    same(made, whole, 0, 1)
    first, second = ((counts / str(number)).read_text().splitlines() for number in range(2))
    assert len(first) == len(second) > 10


def test_a_changed_tokenizer_is_told_before_any_rank_loads(
    bases: dict[str, Path], dataset: Path, tmp_path: Path
) -> None:
    """ZeRO-3 shards a base while it is loaded: the second rank would wait in there for the first."""
    made = both(tmp_path, bases, dataset)
    for paths in made.jobs:
        spec = JobSpec.read(paths.spec)
        replace(spec, base=replace(spec.base, companions={"tokenizer.json": "sha256:another"})).write(paths.spec)

    def wait(number: int) -> None:
        load = BaseHost.load

        def together(*args: Any, **kwargs: Any) -> BaseHost:
            dist.barrier()
            return load(*args, **kwargs)

        run.load_as = run.place = lambda *_: None
        BaseHost.load = together

    assert on_two_ranks(made, wait, zero=3) == [1, 1]
    for number in range(2):
        (said,) = made.events(number, "failed")
        assert said["reason"] == "base_changed"
        assert "tokenizer.json was changed" in said["message"]


@pytest.mark.parametrize(("dtype", "narrow"), [("bf16", ["bf16"]), ("fp32", []), ("fp16", ["fp16"])])
def test_zero_3_loads_a_base_in_its_own_precision(dtype: str, narrow: list[str]) -> None:
    """What transformers hands to `deepspeed.zero.Init`, which makes everything fp32 unless this says otherwise."""
    plugin = DeepSpeedPlugin(zero_stage=3)
    state = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))
    load_as(Processes(state, 0, 2, torch.device("cpu"), 3), dtype)  # type: ignore[arg-type]
    try:
        told = deepspeed_config()
        assert [kind for kind in ("bf16", "fp16") if told[kind]["enabled"]] == narrow
        assert told["zero_optimization"]["stage"] == 3
    finally:
        unset_hf_deepspeed_config()
