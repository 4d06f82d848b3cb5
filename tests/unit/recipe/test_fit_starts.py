"""Starts that cannot be, refused at submit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib import format as npy
from safetensors.torch import save_file

from orchestrator.errors import BadInput
from orchestrator.recipe.bases import BaseFacts
from orchestrator.recipe.fit import fit_faults
from orchestrator.recipe.fit_starts import npy_shape
from orchestrator.recipe.schema import JobRecipe

GPT2 = BaseFacts("causal", "gpt2", "GPT2LMHeadModel", 8, 2, 100, 640, False, True, 1000, False, 8)


def faults(init: dict[str, Any], facts: BaseFacts = GPT2, method: str = "prompt-tuning", **changes: Any) -> list[str]:
    whole: dict[str, Any] = {
        "name": "n",
        "base": "b",
        "dataset": "d",
        "task": {"type": "generate", "input": "{a}", "target": "{b}"},
        "method": {"type": method, "length": changes.pop("length", 3), "init": init},
        "train": {"steps": 3, "lr": 0.1},
        **changes,
    }
    return fit_faults(JobRecipe.model_validate(whole), facts, ["a", "b", "label"], {"train": 5})


def test_a_file_must_have_the_shape(tmp_path: Path) -> None:
    path = tmp_path / "p.npy"
    init = {"type": "file", "path": str(path)}
    assert faults(init) == [f"method.init.path: {path}: No such file or directory"]
    np.save(path, np.zeros((3, 8)))
    assert faults(init) == []
    assert "[3, 16] is needed" in faults(init, replace(GPT2, embedding_width=16))[0]
    assert faults(init, replace(GPT2, embedding_width=None)) == []
    np.save(path, np.zeros((4, 8)))
    assert "shape [4, 8]; [3, 8] is needed" in faults(init)[0]
    np.save(path, np.zeros((3, 8), dtype=np.int32))
    assert "not floating-point" in faults(init)[0]
    path.write_bytes(b"no array")
    assert "not a .npy file" in faults(init)[0]


def test_a_prompt_must_be_of_the_kind_and_the_length(tmp_path: Path) -> None:
    words, deep = tmp_path / "words", tmp_path / "deep"
    for folder, tensors in {
        words: {"embeddings": torch.zeros(3, 8)},
        deep: {"keys_values.decoder": torch.zeros(2, 2, 1, 3, 4)},
    }.items():
        folder.mkdir()
        save_file(tensors, folder / "prompt.safetensors")
    fits = {"prompt-tuning": words, "prefix-tuning": deep, "p-tuning-v2": deep}
    for method, folder in fits.items():
        other = deep if folder is words else words
        assert faults({"type": "prompt", "path": str(folder)}, method=method) == []
        assert "which" in faults({"type": "prompt", "path": [str(folder), str(other)]}, method=method)[0]
        longer = faults({"type": "prompt", "path": str(folder)}, method=method, length=4)
        assert "holds 3 virtual tokens, the recipe 4" in longer[0]
    assert "8 wide" in faults({"type": "prompt", "path": str(words)}, replace(GPT2, embedding_width=9))[0]
    assert "No such file" in faults({"type": "prompt", "path": str(tmp_path)})[0]
    (words / "prompt.safetensors").write_bytes(b"x")
    assert "not a safetensors file" in faults({"type": "prompt", "path": str(words)})[0]


def test_labels_come_from_the_task_or_the_recipe() -> None:
    classify = {"task": {"type": "classify", "input": "{a}", "labels": ["x", "y"]}}
    assert faults({"type": "labels"}, **classify) == []
    assert faults({"type": "labels", "words": ["x"]}) == []
    assert faults({"type": "labels"})[0].startswith("method.init.words: is missing; the task names no labels")


def test_relative_paths_are_taken_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("p.npy", np.zeros((3, 8)))
    assert faults({"type": "file", "path": "p.npy"}) == []
    assert str(tmp_path / "none.npy") in faults({"type": "file", "path": "none.npy"})[0]


def test_a_weight_for_each_folder() -> None:
    with pytest.raises(ValueError, match="1 weights for 2 folders"):
        faults({"type": "prompt", "path": ["a", "b"], "weights": [1.0]})


@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    kind=st.sampled_from(["<f2", "<f4", ">f8", "<i4", "|b1", "|O"]),
    write=st.sampled_from([npy.write_array_header_1_0, npy.write_array_header_2_0]),
    cut=st.integers(0, 200),
)
def test_headers_as_numpy_reads_them(
    shape: list[int], kind: str, write: Any, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.npy"
    with path.open("wb") as file:
        header = {"descr": kind, "fortran_order": False, "shape": tuple(shape)}
        write(file, header)
    whole = path.read_bytes()
    if "f" in kind:
        assert npy_shape(path) == tuple(shape)
    else:
        with pytest.raises(BadInput, match="not floating-point"):
            npy_shape(path)
    path.write_bytes(whole[:cut])
    if cut < len(whole.rstrip()):
        with pytest.raises(BadInput):
            npy_shape(path)
