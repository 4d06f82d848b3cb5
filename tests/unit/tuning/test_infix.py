"""An infix against transformers' own cache: read the input, put the infix behind it into the cache, read the rest."""

from __future__ import annotations

import pytest
import torch
from tiny_bases import bare, host, precision
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache
from tuning_helpers import INFIX, METHODS, built, close, gradients, loss_of, rows, run

from orchestrator.tuning import Prompt, Row


def by_cache(name: str, row: Row, prompt: Prompt) -> Tensor:
    """[M, V] of one row: the released procedure with the paper's free keys and values, eager attention, no padding."""
    _, model = bare(name)
    model.double().requires_grad_(False).set_attn_implementation("eager")
    at, n, ids = row.infix_at, prompt.prefix_length, torch.tensor([row.ids])
    cache = DynamicCache()
    model(input_ids=ids[:, :at], past_key_values=cache, position_ids=torch.arange(at)[None])
    for layer, (key, value) in enumerate(prompt.keys_values["decoder"]):
        cache.update(key[None], value[None], layer)
    positions = torch.arange(at + n, len(row.ids) + n)[None]
    logits: Tensor = model(input_ids=ids[:, at:], past_key_values=cache, position_ids=positions).logits[0]
    assert row.labels is not None
    asked = [i - 1 - at for i, label in enumerate(row.labels) if label != -100]
    return logits[asked]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("config", INFIX)
@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_logits_and_gradients(name: str, config: str, side: str) -> None:
    base = host(name, torch.float64)
    method = built(base, INFIX[config])
    batch = rows(base, method, 4, seed=6)
    assert len({row.infix_at for row in batch}) > 1
    output = run(base, batch, [method.prompt()], side=side)
    prompt = method.prompt()
    expected = torch.cat([by_cache(name, row, prompt) for row in batch])
    close(output.logits, expected, precision(name))
    ours = gradients(method, loss_of(output, range(4)))
    theirs = gradients(method, functional.cross_entropy(expected, output.labels))
    for parameter, gradient in theirs.items():
        assert float(gradient.abs().max()) > 0
        close(ours[parameter], gradient, precision(name))


def test_the_input_does_not_see_it_and_what_follows_does() -> None:
    base = host("gpt2", torch.float64)
    method = built(base, INFIX["infix"])
    ids = [7, 8, 9, 10, 11, 12]
    asked = Row(ids, [-100, *ids[1:]], 0, infix_at=3)
    with_infix = run(base, [asked], [method.prompt().detach()]).logits
    without = run(base, [asked], [Prompt.empty()]).logits
    close(with_infix[:3], without[:3], 1e-12)
    assert all(float((a - b).abs().max()) > 1e-3 for a, b in zip(with_infix[3:], without[3:], strict=True))


@pytest.mark.parametrize("side", ["left", "right"])
def test_it_shares_a_batch_with_every_other_method(side: str) -> None:
    base = host("gpt2", torch.float64)
    configs = [INFIX["infix"], METHODS["prefix-tuning-mlp"], INFIX["infix-mlp"], METHODS["prompt-tuning"]]
    jobs = [built(base, config, seed=i) for i, config in enumerate(configs)]
    mixed = [row for i, job in enumerate(jobs) for row in rows(base, job, 2, prompt=i, seed=20 + i)]
    together = run(base, mixed, [job.prompt() for job in jobs], side=side)
    for number, row in enumerate(mixed):
        alone = run(base, [Row(row.ids, row.labels, 0, infix_at=row.infix_at)], [jobs[row.prompt].prompt()])
        close(together.logits[together.row_of == number], alone.logits, precision("gpt2"))


def test_there_is_none_in_an_encoder() -> None:
    base = host("bert")
    with pytest.raises(ValueError, match="causal"):
        run(base, [Row([5, 6], [-100, 6], 0, infix_at=1)], [Prompt.empty()])
