"""Prefixes in encoder, decoder and cross attention, and P-tuning's network, against what they are, written out by hand,
one row at a time: logits and gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from tiny_bases import bare, host, precision
from torch import Tensor
from torch.nn import functional
from tuning_helpers import ALL, METHODS, built, close, gradients, loss_of, pairs, rows, run

from orchestrator.tuning import Output, TunedMethod

Weights = Mapping[str, Tensor]
Prefix = Mapping[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    bias = w.get(f"{name}.bias")
    return x @ w[f"{name}.weight"].T + (0 if bias is None else bias)


def layer_norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def rms_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return w[f"{name}.weight"] * x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix: Tensor,
    *,
    heads: int,
    scale: float,
    causal: bool,
    bias: Tensor | None = None,
) -> Tensor:
    """[Q, H'], [K, H'], [K, H'] and a prefix [2, heads, n, d] -> [Q, H']."""
    q, k, v = (t.view(len(t), heads, -1) for t in (q, k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    if bias is not None:
        scores = scores + bias
    if causal:
        scores = scores.masked_fill(torch.ones(len(q), len(k)).triu(1).bool(), -math.inf)
    in_front = torch.einsum("qhd,hnd->hqn", q, prefix[0]) * scale
    weights = torch.cat([in_front, scores], dim=-1).softmax(-1)
    n = prefix.shape[2]
    mixed = torch.einsum("hqn,hnd->qhd", weights[..., :n], prefix[1]) + torch.einsum(
        "hqk,khd->qhd", weights[..., n:], v
    )
    return mixed.flatten(1)


def bert(w: Weights, ids: list[int], prefix: Prefix) -> Tensor:
    """[S, V]. Positions go on after the prefix, as with transformers' own past keys and values."""
    n = prefix["encoder"].shape[3]
    e = "bert.embeddings."
    x = w[e + "word_embeddings.weight"][ids] + w[e + "position_embeddings.weight"][n : n + len(ids)]
    x = layer_norm(w, e + "LayerNorm", x + w[e + "token_type_embeddings.weight"][0], 1e-12)
    for number, own in enumerate(prefix["encoder"]):
        layer = f"bert.encoder.layer.{number}."
        q, k, v = (linear(w, f"{layer}attention.self.{part}", x) for part in ("query", "key", "value"))
        mixed = attend(q, k, v, own, heads=4, scale=8**-0.5, causal=False)
        x = layer_norm(
            w, layer + "attention.output.LayerNorm", x + linear(w, layer + "attention.output.dense", mixed), 1e-12
        )
        inner = functional.gelu(linear(w, layer + "intermediate.dense", x))
        x = layer_norm(w, layer + "output.LayerNorm", x + linear(w, layer + "output.dense", inner), 1e-12)
    x = functional.gelu(linear(w, "cls.predictions.transform.dense", x))
    x = layer_norm(w, "cls.predictions.transform.LayerNorm", x, 1e-12)
    return x @ w[e + "word_embeddings.weight"].T + w["cls.predictions.bias"]


def bart(w: Weights, ids: list[int], decoder_ids: list[int], prefix: Prefix) -> Tensor:
    """[T, V]."""

    def start(side: str, tokens: list[int]) -> Tensor:
        positions = w[f"model.{side}.embed_positions.weight"][2 : 2 + len(tokens)]
        return layer_norm(w, f"model.{side}.layernorm_embedding", w["model.shared.weight"][tokens] + positions, 1e-5)

    def attention(name: str, norm: str, x: Tensor, source: Tensor, own: Tensor, causal: bool) -> Tensor:
        q, k, v = linear(w, name + "q_proj", x), linear(w, name + "k_proj", source), linear(w, name + "v_proj", source)
        mixed = attend(q, k, v, own, heads=4, scale=8**-0.5, causal=causal)
        return layer_norm(w, norm, x + linear(w, name + "out_proj", mixed), 1e-5)

    def feed_forward(layer: str, x: Tensor) -> Tensor:
        inner = functional.gelu(linear(w, layer + "fc1", x))
        return layer_norm(w, layer + "final_layer_norm", x + linear(w, layer + "fc2", inner), 1e-5)

    source = start("encoder", ids)
    for number, own in enumerate(prefix["encoder"]):
        layer = f"model.encoder.layers.{number}."
        source = attention(layer + "self_attn.", layer + "self_attn_layer_norm", source, source, own, False)
        source = feed_forward(layer, source)
    x = start("decoder", decoder_ids)
    for number, (own, cross) in enumerate(zip(prefix["decoder"], prefix["cross"], strict=True)):
        layer = f"model.decoder.layers.{number}."
        x = attention(layer + "self_attn.", layer + "self_attn_layer_norm", x, x, own, True)
        x = attention(layer + "encoder_attn.", layer + "encoder_attn_layer_norm", x, source, cross, False)
        x = feed_forward(layer, x)
    return x @ w["model.shared.weight"].T + w["final_logits_bias"][0]


def t5(w: Weights, ids: list[int], decoder_ids: list[int], prefix: Prefix) -> Tensor:
    """[T, V]. A prefix has no distance to anything: its columns get no position bias."""

    def bucket(distance: int, both_ways: bool) -> int:
        """32 buckets up to distance 128 (Raffel et al. 2020; mesh_tensorflow's transformer_layers.py)."""
        count = 16 if both_ways else 32
        first = count if both_ways and distance > 0 else 0
        size = abs(distance) if both_ways else max(0, -distance)
        exact = count // 2
        if size < exact:
            return first + size
        return first + min(count - 1, exact + int(math.log(size / exact) / math.log(128 / exact) * (count - exact)))

    def bias(side: str, length: int) -> Tensor:
        table = w[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        buckets = [[bucket(key - query, side == "encoder") for key in range(length)] for query in range(length)]
        return table[torch.tensor(buckets)].permute(2, 0, 1)

    def attention(
        layer: str, kind: str, x: Tensor, source: Tensor | None, own: Tensor, causal: bool, b: Tensor | None
    ) -> Tensor:
        normed = rms_norm(w, layer + "layer_norm", x)
        source = normed if source is None else source
        q, k, v = (linear(w, f"{layer}{kind}.{part}", s) for part, s in (("q", normed), ("k", source), ("v", source)))
        return x + linear(w, f"{layer}{kind}.o", attend(q, k, v, own, heads=4, scale=1.0, causal=causal, bias=b))

    def feed_forward(layer: str, x: Tensor) -> Tensor:
        inner = linear(w, layer + "DenseReluDense.wi", rms_norm(w, layer + "layer_norm", x)).relu()
        return x + linear(w, layer + "DenseReluDense.wo", inner)

    source = w["shared.weight"][ids]
    for number, own in enumerate(prefix["encoder"]):
        block = f"encoder.block.{number}.layer."
        source = attention(block + "0.", "SelfAttention", source, None, own, False, bias("encoder", len(ids)))
        source = feed_forward(block + "1.", source)
    source = rms_norm(w, "encoder.final_layer_norm", source)
    x = w["shared.weight"][decoder_ids]
    for number, (own, cross) in enumerate(zip(prefix["decoder"], prefix["cross"], strict=True)):
        block = f"decoder.block.{number}.layer."
        x = attention(block + "0.", "SelfAttention", x, None, own, True, bias("decoder", len(decoder_ids)))
        x = attention(block + "1.", "EncDecAttention", x, source, cross, False, None)
        x = feed_forward(block + "2.", x)
    return rms_norm(w, "decoder.final_layer_norm", x) * len(x[0]) ** -0.5 @ w["shared.weight"].T


@pytest.mark.parametrize(
    ("name", "config"),
    [pair for pair in pairs(["bert", "bart", "t5"]) if "prefix-tuning" in pair[1] or "v2" in pair[1]],
)
def test_prefixes_against_the_model_written_out(name: str, config: str) -> None:
    base = host(name, torch.float64)
    method = built(base, ALL[config])
    batch = rows(base, method, 4, seed=6)
    output = run(base, batch, [method.prompt()])
    weights = bare(name)[1].double().state_dict()
    prefix = method.prompt().keys_values
    assert set(prefix) == ({"encoder"} if name == "bert" else {"encoder", "decoder", "cross"})
    expected = []
    for row in batch:
        assert row.labels is not None
        if name == "bert":
            asked = [i for i, label in enumerate(row.labels) if label != -100]
            expected.append(bert(weights, row.ids, prefix)[asked])
        else:
            model = bart if name == "bart" else t5
            expected.append(model(weights, row.ids, [1, *row.labels[:-1]], prefix))
    same(method, output, torch.cat(expected), precision(name))


def same(method: TunedMethod, output: Output, expected: Tensor, relative: float) -> None:
    """Logits, and the gradients of all that the method trains."""
    close(output.logits, expected, relative)
    ours = gradients(method, loss_of(output, range(int(output.row_of.max()) + 1)))
    theirs = gradients(method, functional.cross_entropy(expected, output.labels))
    assert theirs
    for parameter, gradient in theirs.items():
        assert float(gradient.abs().max()) > 0
        close(ours[parameter], gradient, relative)


def lstm(w: Weights, x: Tensor) -> Tensor:
    """[n, H]: two layers, both ways (Hochreiter & Schmidhuber 1997, with a forget gate; torch's order of the gates)."""
    for layer in range(2):
        ways = []
        for way in ("", "_reverse"):
            inner, outer, bias_in, bias_out = (
                w[f"{part}_l{layer}{way}"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            h = c = x.new_zeros(outer.shape[1])
            made = []
            for step in x.flip(0) if way else x:
                i, f, g, o = (inner @ step + bias_in + outer @ h + bias_out).chunk(4)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                made.append(h)
            ways.append(torch.stack(made[::-1] if way else made))
        x = torch.cat(ways, dim=-1)
    return x


@pytest.mark.parametrize("name", ["bert", "gpt2", "bart"])
def test_p_tuning_at_the_places_of_a_template_written_out(name: str) -> None:
    """THUDM/P-tuning, LAMA: embedding, LSTM, Linear - ReLU - Linear; the rows overwrite what stands at the template's
    places (prompt_encoder.py; modeling.py, embed_input)."""
    base = host(name, torch.float64)
    method = built(base, METHODS["p-tuning"])
    batch = rows(base, method, 4, seed=6)
    assert all(min(row.ids[:2]) < 0 and min(row.ids[2:]) < 0 for row in batch), "in two places of each row"
    output = run(base, batch, [method.prompt()])
    w = dict(method.named_parameters())
    cell = {key.rpartition(".")[2]: tensor for key, tensor in w.items() if ".lstm." in key}
    (first, first_bias), (second, second_bias) = (
        [w[f"encoder.mlp.{number}.{part}"] for part in ("weight", "bias")] for number in (0, 2)
    )
    made = (lstm(cell, w["inputs"]) @ first.T + first_bias).relu() @ second.T + second_bias
    _, model = bare(name)
    model.double().requires_grad_(False)
    table, expected = model.get_input_embeddings().weight, []
    for row in batch:
        assert row.labels is not None
        words = torch.stack([made[-token - 1] if token < 0 else table[token] for token in row.ids])[None]
        fed = {"decoder_input_ids": torch.tensor([[1, *row.labels[:-1]]])} if name == "bart" else {}
        logits = model(inputs_embeds=words, **fed).logits[0]
        shift = int(name == "gpt2")
        expected.append(logits[[i - shift for i, label in enumerate(row.labels) if label != -100]])
    same(method, output, torch.cat(expected), precision(name))
