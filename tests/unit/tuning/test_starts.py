"""Where virtual tokens start: labels, files, other prompts; and the residual network, written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_bases import H, host
from torch import Tensor
from tuning_helpers import built, close

from orchestrator.errors import MethodDoesNotFit
from orchestrator.tuning import BaseHost, Prompt, TunedMethod, save_prompt


@pytest.fixture
def base() -> BaseHost:
    """Its tokenizer reads numbers as ids."""
    made = host("gpt2")
    made.tokenizer = Numbers()
    return made


class Numbers:
    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}

    def __len__(self) -> int:
        return 61


def embeddings(method: TunedMethod) -> Tensor:
    found = method.prompt().embeddings
    assert found is not None
    return found.detach()


def started(base: BaseHost, init: dict[str, Any], length: int, **changes: Any) -> Tensor:
    return embeddings(built(base, {"type": "prompt-tuning", "length": length, "init": init, **changes}))


def test_labels_start_as_the_mean_of_their_tokens_and_the_rest_from_the_vocabulary(base: BaseHost) -> None:
    init = {"type": "labels", "words": ["40 50 60", "41"], "top": 30}
    start = started(base, init, 6)
    table = base.model.get_input_embeddings().weight.detach()
    close(start[0], (table[40] + table[50] + table[60]) / 3, 1e-6)
    assert torch.equal(start[1], table[41])
    found = [int((table == row).all(1).nonzero()) for row in start[2:]]
    assert len(set(found)) == 4
    assert max(found) < 30
    one = started(base, init, 1)
    assert torch.equal(one, start[:1])


def test_labels_without_words_or_tokens_are_refused(base: BaseHost) -> None:
    with pytest.raises(MethodDoesNotFit, match="no labels"):
        started(base, {"type": "labels"}, 2)
    with pytest.raises(MethodDoesNotFit, match="no token"):
        started(base, {"type": "labels", "words": [" "]}, 2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_file_gives_its_numbers(base: BaseHost, dtype: type, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=(3, H)).astype(dtype)
    np.save(tmp_path / "p.npy", numbers)
    start = started(base, {"type": "file", "path": str(tmp_path / "p.npy")}, 3)
    assert np.array_equal(start.numpy(), numbers.astype(np.float32))


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_files_that_do_not_fit(base: BaseHost, tmp_path: Path) -> None:
    path = tmp_path / "p.npy"
    bomb = np.empty((3, H), dtype=object)
    bomb.fill(Bomb(tmp_path / "boom"))
    nan = np.full((3, H), np.nan)
    wrong = [np.zeros((2, H)), np.zeros((3, H + 1)), np.zeros(3 * H), np.zeros((3, H), dtype=np.int64), bomb, nan]
    for array in wrong:
        np.save(path, array, allow_pickle=True)
        with pytest.raises(MethodDoesNotFit):
            started(base, {"type": "file", "path": str(path)}, 3)
    for content in (b"", b"\x93NUMPY", b"text"):
        path.write_bytes(content)
        with pytest.raises(MethodDoesNotFit):
            started(base, {"type": "file", "path": str(path)}, 3)
    np.savez(tmp_path / "z.npz", np.zeros((3, H)))
    with pytest.raises(MethodDoesNotFit, match="several arrays"):
        started(base, {"type": "file", "path": str(tmp_path / "z.npz")}, 3)
    with pytest.raises(MethodDoesNotFit):
        started(base, {"type": "file", "path": str(tmp_path / "none.npy")}, 3)
    assert not (tmp_path / "boom").exists()


def kept(folder: Path, method: TunedMethod) -> str:
    folder.mkdir()
    save_prompt(folder, method.eval().prompt().detach(), {})
    return str(folder)


@pytest.mark.parametrize(
    "config",
    [
        {"type": "prompt-tuning", "length": 3},
        {"type": "prefix-tuning", "length": 3},
        {"type": "p-tuning-v2", "length": 3, "dropout": 0},
    ],
    ids=lambda c: c["type"],
)
def test_a_prompt_goes_on_from_others(base: BaseHost, config: dict[str, Any], tmp_path: Path) -> None:
    first, second = (built(base, config, seed=seed) for seed in (1, 2))
    folders = [kept(tmp_path / "a", first), kept(tmp_path / "b", second)]
    parts = [method.prompt().tensors() for method in (first, second)]

    def start(**init: Any) -> dict[str, Tensor]:
        return dict(built(base, config | {"init": {"type": "prompt", **init}}, seed=3).prompt().tensors())

    (name,) = parts[0]
    assert torch.equal(start(path=folders[0])[name], parts[0][name])
    close(start(path=folders)[name], (parts[0][name] + parts[1][name]) / 2, 1e-6)
    close(start(path=folders, weights=[0.9, -0.2])[name], 0.9 * parts[0][name] - 0.2 * parts[1][name], 1e-6)


def test_prompts_of_another_shape_or_kind_are_refused(base: BaseHost, tmp_path: Path) -> None:
    words = kept(tmp_path / "words", built(base, {"type": "prompt-tuning", "length": 3}))
    deep = kept(tmp_path / "deep", built(base, {"type": "prefix-tuning", "length": 3}))
    for kind, length, path in (
        ("prompt-tuning", 4, words),
        ("prompt-tuning", 3, deep),
        ("prompt-tuning", 3, [words, deep]),
        ("prompt-tuning", 3, str(tmp_path / "none")),
        ("prefix-tuning", 4, deep),
        ("prefix-tuning", 3, words),
    ):
        with pytest.raises(MethodDoesNotFit):
            built(base, {"type": kind, "length": length, "init": {"type": "prompt", "path": path}})


@pytest.mark.parametrize("length", [1, 150])
@pytest.mark.parametrize("init", [{"type": "random"}, {"type": "vocab"}, {"type": "text", "text": "9 8"}], ids=str)
def test_the_shortest_and_the_longest(base: BaseHost, init: dict[str, Any], length: int) -> None:
    assert started(base, init, length).shape == (length, H)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_the_residual_network_written_out(base: BaseHost, shared: bool, layer_norm: bool) -> None:
    """arazd/ResidualPrompts, train.py, ResMLP: module(inputs) + inputs; pass_separate_mlps: one module each."""
    network = {"type": "residual", "hidden": 5, "shared": shared, "layer_norm": layer_norm}
    config = {"type": "prompt-tuning", "length": 4, "reparameterization": network}
    method = built(base, config)
    numbers = {name: t.detach().double().numpy() for name, t in method.named_parameters()}
    assert sum(t.size for t in numbers.values()) == 4 * H + (1 if shared else 4) * (11 * H + 5 + 2 * H * layer_norm)
    if layer_norm:
        with torch.no_grad():
            for name, tensor in method.named_parameters():
                if name.endswith((".3.weight", ".3.bias")):
                    tensor.add_(torch.linspace(0, 1, H))
    numbers = {name: t.detach().double().numpy() for name, t in method.named_parameters()}
    for row in range(4):
        at = f"encoder.networks.{0 if shared else row}."
        p = numbers["embeddings"][row]
        inner = np.maximum(numbers[at + "0.weight"] @ p + numbers[at + "0.bias"], 0)
        out = numbers[at + "2.weight"] @ inner + numbers[at + "2.bias"]
        if layer_norm:
            out = (out - out.mean()) / np.sqrt(out.var() + 1e-5) * numbers[at + "3.weight"] + numbers[at + "3.bias"]
        close(embeddings(method)[row].double(), torch.from_numpy(p + out), 1e-5)


def test_a_start_is_the_input_of_the_network(base: BaseHost, tmp_path: Path) -> None:
    network = {"type": "residual", "hidden": 5}
    folder = kept(tmp_path / "a", built(base, {"type": "prompt-tuning", "length": 3}))
    config = {"type": "prompt-tuning", "length": 3, "reparameterization": network}
    method = built(base, config | {"init": {"type": "prompt", "path": folder}})
    source = Prompt.from_tensors({"embeddings": method.state_dict()["embeddings"]})
    assert source.embeddings is not None
    assert torch.equal(source.embeddings, started(base, {"type": "prompt", "path": folder}, 3))
