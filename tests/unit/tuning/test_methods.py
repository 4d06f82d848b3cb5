"""What each method owns, how it starts, and what is left of it."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from tiny_bases import EACH_KIND, H, host
from tuning_helpers import ALL, INFIX, METHODS, ONE_STACK, built, close, pairs, rows, run

from orchestrator.errors import BadInput, MethodDoesNotFit, NotFound
from orchestrator.recipe.methods import PTuning
from orchestrator.tuning import METHODS as TABLE
from orchestrator.tuning import Prompt, build_method, load_prompt, save_prompt
from orchestrator.tuning.methods.deep import keys_values_of_text

FILE = "prompt.safetensors"


@pytest.mark.parametrize(("name", "config"), pairs(EACH_KIND))
def test_folding_keeps_the_result_and_drops_the_network(name: str, config: str, tmp_path: Path) -> None:
    base = host(name)
    method = built(base, ALL[config])
    batch = rows(base, method, 3)
    head = {"weight": torch.randn(2, H)}
    save_prompt(tmp_path, method.prompt(), head)
    prompt, loaded_head = load_prompt(tmp_path)
    assert torch.equal(run(base, batch, [prompt]).logits, run(base, batch, [method.prompt()]).logits)
    assert loaded_head.keys() == head.keys()
    assert torch.equal(loaded_head["weight"], head["weight"])
    kinds = {"causal": ["decoder"], "masked": ["encoder"], "seq2seq": ["cross", "decoder", "encoder"]}[base.kind]
    expected = (
        [f"keys_values.{k}" for k in kinds] if method.prompt().keys_values else ["embeddings"] if method.length else []
    )
    assert sorted(load_file(tmp_path / FILE)) == sorted([*expected, "head.weight"])
    assert prompt.length == method.length


@pytest.mark.parametrize("config", ALL)
def test_the_generator_is_the_only_source_of_chance(config: str) -> None:
    base = host("gpt2")
    assert base.sites
    before = torch.get_rng_state()
    first, same, other = (built(base, ALL[config], seed=seed).state_dict() for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not first or not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(("name", "config"), pairs(["t5", "bert"]))
def test_a_checkpoint_of_the_method_goes_on_where_it_was(name: str, config: str) -> None:
    base = host(name)
    method, fresh = built(base, ALL[config], seed=1), built(base, ALL[config], seed=2)
    fresh.load_state_dict(method.state_dict())
    for name, tensor in method.prompt().tensors().items():
        assert torch.equal(fresh.prompt().tensors()[name], tensor)


def test_vocabulary_start_is_words_of_the_vocabulary_without_repeats() -> None:
    base = host("gpt2")
    config = {"type": "prompt-tuning", "length": 20, "init": {"type": "vocab", "top": 30}}
    started = built(base, config).prompt().embeddings
    assert started is not None
    table = base.embed(torch.arange(30))
    found = [int((table == row).all(1).nonzero()) for row in started]
    assert len(set(found)) == 20


def test_more_virtual_tokens_than_words() -> None:
    base = host("gpt2")
    prompt = built(base, {"type": "prompt-tuning", "length": 100, "init": {"type": "vocab", "top": 30}}).prompt()
    assert prompt.embeddings is not None
    assert prompt.embeddings.shape == (100, H)


def test_text_start_repeats_the_text() -> None:
    base = host("gpt2")
    base.tokenizer = lambda text, add_special_tokens: {"input_ids": [int(word) for word in text.split()]}
    started = (
        built(base, {"type": "prompt-tuning", "length": 5, "init": {"type": "text", "text": "9 8"}}).prompt().embeddings
    )
    assert torch.equal(started, base.embed(torch.tensor([9, 8, 9, 8, 9])))  # type: ignore[arg-type]
    with pytest.raises(MethodDoesNotFit, match="no token"):
        built(base, {"type": "prompt-tuning", "init": {"type": "text", "text": " "}})


def test_random_start_is_uniform_around_zero() -> None:
    prompt = built(
        host("gpt2"), {"type": "prompt-tuning", "length": 500, "init": {"type": "random", "scale": 0.25}}
    ).prompt()
    assert prompt.embeddings is not None
    numbers = prompt.embeddings.detach()
    assert float(numbers.abs().max()) <= 0.25
    assert abs(float(numbers.mean())) < 0.01
    assert float(numbers.min()) < -0.24


def test_where_the_virtual_tokens_go() -> None:
    base = host("gpt2")
    slots = {name: built(base, config).slots for name, config in ALL.items()}
    assert slots == {
        "prompt-tuning": "front",
        "prompt-tuning-residual": "after-bos",
        "prefix-tuning": "none",
        "prefix-tuning-mlp": "none",
        "prefix-embedding": "front",
        "p-tuning": "template",
        "p-tuning-mlp": "front",
        "head": "none",
        "p-tuning-v2": "none",
        "p-tuning-v2-mlp": "none",
        "infix": "infix",
        "infix-mlp": "infix",
    }
    names = {config["type"] for config in ALL.values()}
    without = {"head", "prompt-design", "fine-tuning", "lora", "lm-adapt"}
    assert set(TABLE) == {*names, "warp", "autoprompt", "pet"} | without


def test_p_tuning_needs_a_length_from_somewhere() -> None:
    with pytest.raises(MethodDoesNotFit, match="how many virtual tokens"):
        build_method(PTuning(type="p-tuning"), host("gpt2"), length=None, generator=torch.Generator())


@pytest.mark.parametrize("kind", ["prefix-tuning", "p-tuning-v2"])
def test_prefix_dropout_is_asked_for_and_drawn_anew(kind: str) -> None:
    method = built(host("gpt2"), {"type": kind, "length": 20, "dropout": 0.5})
    prompt = method.prompt()
    one, other = (prompt.dropped(0.5).keys_values["decoder"] for _ in range(2))
    kept = one != 0
    assert 0.4 < float(kept.double().mean()) < 0.6
    assert torch.equal(one[kept], 2 * prompt.keys_values["decoder"][kept])
    assert not torch.equal(kept, other != 0)
    assert float((prompt.keys_values["decoder"] == 0).double().mean()) == 0


def test_layers_of_different_shapes_are_refused() -> None:
    base = host("gpt2")
    wider = [SimpleNamespace(**{**vars(site), "head_dim": 8 + site.layer}) for site in base.sites]
    base.injector.sites = wider  # type: ignore[assignment]
    with pytest.raises(MethodDoesNotFit, match="differ"):
        built(base, METHODS["prefix-tuning"])


def test_p_tuning_v2_starts_normal_without_a_network() -> None:
    start = built(host("bert"), {"type": "p-tuning-v2", "length": 200}).state_dict()["makers.encoder.keys_values"]
    assert start.shape == (2, 2, 4, 200, 8)
    assert abs(float(start.mean())) < 0.02
    assert abs(float(start.std()) - 1) < 0.02
    assert abs(float(start.square().mean().sqrt()) - 1) < 0.02


def test_p_tuning_v2_is_refused_where_there_are_two_stacks() -> None:
    with pytest.raises(MethodDoesNotFit, match="prefix-tuning is for encoder-decoder"):
        built(host("t5"), ONE_STACK["p-tuning-v2"])


@pytest.mark.parametrize("init", [{"type": "text", "text": "9 8"}, {"type": "words", "words": ["9", "8"]}])
def test_keys_and_values_start_from_what_the_base_computes_for_words(init: dict[str, Any]) -> None:
    base = host("gpt2")
    base.tokenizer = lambda text, add_special_tokens: {"input_ids": [int(word) for word in text.split()]}
    expected = keys_values_of_text(base, torch.tensor([9, 8, 9, 8, 9]))["decoder"]
    direct = built(base, {"type": "prefix-tuning", "length": 5, "init": init}).prompt()
    assert torch.equal(direct.keys_values["decoder"], expected)
    network = {"hidden": 64, "layers": 2}
    config = {"type": "prefix-tuning", "length": 5, "reparameterization": network}
    free, fitted = (built(base, c).prompt().keys_values["decoder"] for c in (config, config | {"init": init}))
    errors = [float((made - expected).square().mean().detach()) for made in (free, fitted)]
    assert errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_an_infix_is_refused_where_it_cannot_stand(name: str) -> None:
    with pytest.raises(MethodDoesNotFit, match="positions are added"):
        built(host(name), INFIX["infix"])
    with pytest.raises(MethodDoesNotFit, match="in front"):
        built(host(name), INFIX["infix"] | {"embedding_only": True})


@pytest.mark.parametrize("layers", [1, 2])
def test_the_perceptron_written_out(layers: int) -> None:
    """gpt2/train_control.py: Embedding -> Linear -> Tanh (-> Linear -> Tanh) -> Linear, of [layer, (k, v), head, d]."""
    base = host("gpt2")
    network = {"hidden": 6, "layers": layers}
    method = built(base, {"type": "prefix-tuning", "length": 5, "reparameterization": network})
    w = {name.removeprefix("makers.decoder."): t.detach().double() for name, t in method.named_parameters()}
    x = w["inputs"]
    for number in range(layers):
        x = torch.tanh(x @ w[f"mlp.{2 * number}.weight"].T + w[f"mlp.{2 * number}.bias"])
    x = x @ w[f"mlp.{2 * layers}.weight"].T + w[f"mlp.{2 * layers}.bias"]
    made = method.prompt().keys_values["decoder"]
    assert made.shape == (2, 2, 4, 5, 8)
    for layer in range(2):
        for which in range(2):
            for head in range(4):
                start = (layer * 2 + which) * 32 + head * 8
                close(made[layer, which, head].double(), x[:, start : start + 8], 1e-6)


@pytest.mark.parametrize("length", [1, 300])
@pytest.mark.parametrize("network", [{"type": "none"}, {"hidden": 6}], ids=str)
def test_the_shortest_and_the_longest_prefix(length: int, network: dict[str, Any]) -> None:
    base = host("t5")
    method = built(base, {"type": "prefix-tuning", "length": length, "reparameterization": network})
    assert method.prompt().prefix_length == length
    assert run(base, rows(base, method, 2), [method.prompt()]).logits.isfinite().all()


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_in_place_of_safetensors_is_refused_and_not_run(tmp_path: Path) -> None:
    for payload in (pickle.dumps(Bomb(tmp_path / "boom")), b""):
        (tmp_path / FILE).write_bytes(payload)
        with pytest.raises(BadInput, match="safetensors"):
            load_prompt(tmp_path)
    torch.save({"embeddings": torch.zeros(2, 2)}, tmp_path / FILE)
    with pytest.raises(BadInput, match="safetensors"):
        load_prompt(tmp_path)
    assert not (tmp_path / "boom").exists()


def test_no_artifact_at_all(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=FILE):
        load_prompt(tmp_path)


@pytest.mark.parametrize(
    "tensors",
    [{"embeddings": torch.zeros(3)}, {"keys_values.decoder": torch.zeros(1, 3, 1, 1, 1)}, {"x": torch.zeros(1, 1)}],
)
def test_tensors_that_are_no_prompt(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(save(tensors))
    with pytest.raises(BadInput, match="not a part of a prompt"):
        load_prompt(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 10_000), flips=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4))
def test_a_damaged_file_is_bad_input_and_nothing_else(cut: int, flips: list[tuple[int, int]], tmp_path: Path) -> None:
    data = bytearray(save(Prompt(torch.zeros(2, 4), {"decoder": torch.zeros(1, 2, 1, 2, 4)}).tensors()))
    for place, value in flips:
        data[place] = value
    (tmp_path / FILE).write_bytes(bytes(data[:cut]))
    try:
        prompt, head = load_prompt(tmp_path)
    except BadInput:
        pass
    else:
        assert cut >= len(data)
        assert not head
        assert prompt.length >= 0
