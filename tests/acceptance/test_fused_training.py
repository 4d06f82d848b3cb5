"""Jobs of several methods through `ptq submit` and `ptq worker` share one run, and end as they do alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from box import Box, armed_box
from safetensors.torch import load_file
from torch.testing import assert_close

from orchestrator.cost import Cost

TRAIN = {"batch_size": 4, "lr": 0.01, "checkpoint_every": 10, "eval_batch_size": 8}
TASK = {"type": "generate", "input": "the {text}", "target": "{target}", "max_new_tokens": 4}
WORDS = {
    "type": "classify",
    "input": "the {text} is ",
    "label": "{label}",
    "labels": {"warm": ["warm"], "cold": ["cold"]},
}
STEPS = (50, 40, 200, 45)
METHODS: list[dict[str, Any]] = [
    {"type": "prompt-tuning", "length": 3},
    {"type": "prefix-tuning", "length": 2, "dropout": 0.2, "reparameterization": {"hidden": 8}},
    {"type": "prompt-tuning", "length": 2},
    {"type": "p-tuning", "length": 4},
]
CANCELLED = 2


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    yield from armed_box(tmp_path, monkeypatch)


def submit(box: Box, fuse: str) -> None:
    for number, (method, steps) in enumerate(zip(METHODS, STEPS, strict=True)):
        if fuse == "never" and number == CANCELLED:
            continue
        task = WORDS if number == 3 else TASK
        train = {**TRAIN, "steps": steps, "seeds": [number + 1], "eval_every": 15}
        resources = {"fuse": fuse}
        box.ok("submit", box.recipe(f"{fuse}-{number}", task=task, train=train, method=method, resources=resources))


def cost_is_known(box: Box) -> None:
    """Whether the jobs share their next run depends on what was measured here, and other tests load this machine."""
    for path in (box.home / "calibrations").glob("*.json"):  # none where the machine was too busy to measure
        measured = Cost.read(path)
        assert measured is not None
        replace(measured, curve=((8.0, 0.002), (512.0, 0.008)), job_seconds=0.0001, padding_seconds=0.0).write(path, {})


@pytest.mark.timeout(600)
def test_fused_jobs_end_as_they_do_alone(box: Box) -> None:
    """One is cancelled in the middle, and then the program is killed with -9."""
    submit(box, "always")
    worker = box.start("worker", "--cpu-slots", "1", "--until-idle")
    box.halted("training.checkpointed", "training.stepped")
    box.ok("cancel", str(1 + CANCELLED))
    while box.job(1 + CANCELLED)["state"] != "finished":
        box.halted("training.stepped")
    cost_is_known(box)
    box.kill("orchestrator.training.run")
    said = worker.communicate(timeout=250)[0]
    assert worker.returncode == 0, said
    submit(box, "never")
    box.work(slots=2)
    fused, alone = [1, 2, 4], [5, 6, 7]
    cancelled = box.job(1 + CANCELLED)
    assert (cancelled["result"], cancelled["attempt"]) == ("cancelled", 1)
    assert len({box.json("show", str(job), "--json")["run"] for job in fused}) == 1
    for one, other in zip(fused, alone, strict=True):
        assert box.job(one)["result"] == box.job(other)["result"] == "succeeded"
        assert box.job(one)["attempt"] == 2
        assert box.job(one)["progress"] == box.job(other)["progress"]
        assert box.job(one)["metrics"]["validation"] == box.job(other)["metrics"]["validation"]
        found, expected = (load_file(box.artifact(job) / "prompt.safetensors") for job in (one, other))
        assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not box.processes()
