"""Several processes, DDP or ZeRO, train what one process trains, a job that joins them too.

All stages at 50 steps: `make proof-processes`; jobs that come and go: `make proof-isolation`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import largest_difference, launch, launch_scripted
from safetensors.torch import load_file
from torch.testing import assert_close
from training_fixtures import make_base, make_dataset, make_run, recipe

METHOD = {"type": "prefix-tuning", "length": 3, "reparameterization": {"hidden": 8}}


@pytest.mark.parametrize("zero", [None, 3], ids=["ddp", "zero-3"])
def test_two_processes_train_what_one_does(zero: int | None, tmp_path: Path) -> None:
    base, dataset = make_base(tmp_path / "base", "gpt2"), make_dataset(tmp_path / "data")
    # 3 rows do not divide by 2, and the second rank has rows for one of the two passes only.
    wanted = recipe(METHOD, train__steps=8, train__batch_size=3, train__accumulation=2, train__lr=0.01)
    one = launch(tmp_path / "one", [wanted], base=base, dataset=dataset, processes=1, zero=None).run
    # While it is there, both compute their layers again in the backward, the first job's prefixes in them too.
    guest = recipe({"type": "prompt-tuning", "length": 2}, train__steps=4)
    again = recipe({"type": "prompt-tuning", "length": 2}, train__steps=4, train__gradient_checkpointing=True)
    joins = [(0, 0, lambda stage: stage.join(1))]
    both = {"base": base, "dataset": dataset, "processes": 2, "zero": zero}
    two = launch_scripted(tmp_path / "two", [wanted, again], joins, **both).made
    assert two.events(kind="started")[0]["processes"] == 2
    assert largest_difference(one, two) < 1e-4
    prompts = [load_file(run.jobs[0].artifact(1) / "prompt.safetensors") for run in (one, two)]
    assert_close(prompts[1], prompts[0], rtol=1e-3, atol=1e-5)
    assert two.artifact()["metrics"] == one.artifact()["metrics"]
    assert list(two.losses(1)) == [1, 2, 3, 4]  # it joined the two, and left before
    alone = make_run(tmp_path / "guest", [guest], base=base, dataset=dataset)
    assert alone.train() == 0
    assert two.losses(1) == pytest.approx(alone.losses(), rel=1e-5)
