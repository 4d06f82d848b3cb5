"""A checkpoint is whole or passed over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from orchestrator.paths import JobPaths
from orchestrator.training.checkpoint import (
    Checkpoint,
    newest_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)


def save(paths: JobPaths, *steps: int, identity: str = "mine") -> None:
    for step in steps:
        save_checkpoint(paths, Checkpoint(step, step - 1, identity, {"prompt.x": torch.full((3,), float(step))}))


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    paths = JobPaths(tmp_path)
    save(paths, 2, 10, 9, 100)
    assert sorted(p.name for p in paths.checkpoints.iterdir()) == ["step-00000010", "step-00000100"]
    found = newest_checkpoint(paths, "mine")
    assert found is not None
    assert (found.step, found.evaluated) == (100, 99)
    assert_close(found.tensors, {"prompt.x": torch.full((3,), 100.0)})


def test_steps_beyond_eight_digits_are_found(tmp_path: Path) -> None:
    paths = JobPaths(tmp_path)
    save(paths, 99_999_999, 100_000_000)
    found = newest_checkpoint(paths, "mine")
    assert found is not None
    assert found.step == 100_000_000


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_falls_back_to_the_one_before(data: st.DataObject, tmp_path: Path) -> None:
    paths = JobPaths(tmp_path / str(data.draw(st.integers(0, 2**40))))
    save(paths, 3, 4)
    file = data.draw(st.sampled_from(sorted(paths.checkpoint(4).iterdir())))
    content = file.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    how = data.draw(st.sampled_from(["cut", "flip", "delete"]))
    if how == "delete":
        file.unlink()
    else:
        flipped = content[:at] + bytes([content[at] ^ (1 << data.draw(st.integers(0, 7)))]) + content[at + 1 :]
        file.write_bytes(content[:at] if how == "cut" else flipped)
    found = newest_checkpoint(paths, "mine")
    assert found is not None
    # A changed byte of the manifest's white space changes nothing.
    assert found.step == 3 or (file.name == "manifest.json" and how != "delete")
    assert_close(found.tensors, {"prompt.x": torch.full((3,), float(found.step))})


def test_another_identity_is_passed_over(tmp_path: Path) -> None:
    paths = JobPaths(tmp_path)
    save(paths, 3)
    save(paths, 4, identity="another's")
    found = newest_checkpoint(paths, "mine")
    assert found is not None
    assert found.step == 3
    assert newest_checkpoint(paths, "nobody's") is None
    assert newest_checkpoint(JobPaths(tmp_path / "nothing"), "mine") is None


def test_what_a_killed_attempt_left_is_cleared_away(tmp_path: Path) -> None:
    paths = JobPaths(tmp_path)
    save(paths, 1)
    for name in (".step-00000002.1234abcd.partial", ".step-00000001.1234abcd.old"):
        (paths.checkpoints / name).mkdir()
        (paths.checkpoints / name / "state.safetensors").write_bytes(b"half")
    save(paths, 2)
    assert sorted(p.name for p in paths.checkpoints.iterdir()) == ["step-00000001", "step-00000002"]


def test_a_save_that_fails_leaves_the_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = JobPaths(tmp_path)
    save(paths, 1, 2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.training.checkpoint.write_manifest", full)
        with pytest.raises(OSError, match="No space"):
            save(paths, 3)
    assert sorted(p.name for p in paths.checkpoints.iterdir()) == ["step-00000001", "step-00000002"]


def test_an_optimizer_goes_on_as_if_it_had_not_stopped() -> None:
    def train(steps: int, parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        for _ in range(steps):
            sum((p**2).sum() for p in parameters).backward()  # type: ignore[union-attr]
            optimizer.step()
            optimizer.zero_grad()

    def made(values: list[torch.Tensor]) -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        parameters = [torch.nn.Parameter(value.clone()) for value in values]
        groups = [{"params": parameters[:1], "lr": 0.1}, {"params": parameters[1:], "lr": 0.01}]
        return parameters, torch.optim.AdamW(groups, weight_decay=0.1)

    start = [torch.ones(2, 3), torch.ones(4), torch.ones(())]
    whole, first = made(start), made(start)
    train(7, *whole)
    train(3, *first)
    again = made([p.detach() for p in first[0]])
    restore_optimizer(again[1], optimizer_tensors(first[1]))
    train(4, *again)
    assert [p.tolist() for p in again[0]] == [p.tolist() for p in whole[0]]
