"""The attention function by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from tuning_helpers import close

from orchestrator.tuning import Prompt
from orchestrator.tuning.injection import Injector, Prefixes, Site, attention, checkpoint_layers


class Shared(GradientCheckpointingLayer):
    """A layer that shares its attention module with the other layers, as ALBERT's do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """[1, 1, S, d] -> the same."""
        return x + attention(self.inner, x, x, x, None, is_causal=False)[0].transpose(1, 2)


def test_layers_that_share_a_module_each_get_their_own_prefix_also_when_recomputed() -> None:
    inner = nn.Identity()
    model = nn.Sequential(*[Shared(inner) for _ in range(3)])
    injector = Injector([(inner, Site("encoder", layer, 1, 4, 4)) for layer in range(3)])
    torch.manual_seed(0)
    prefix = torch.randn(3, 2, 1, 2, 4, requires_grad=True)
    x = torch.randn(1, 1, 5, 4)
    found = []
    for on in (False, True):
        checkpoint_layers(model, injector, on)
        prefixes = Prefixes.of([Prompt(keys_values={"encoder": prefix})], torch.tensor([0]), x.dtype)
        with injector.injecting(prefixes):
            y = model(x)
        found += [torch.autograd.grad(y.square().sum(), prefix)[0], y]
    close(found[3], found[1], 1e-6)
    close(found[2], found[0], 1e-5)
    assert all(float(layer.abs().max()) > 0 for layer in found[0])


def test_a_mask_that_is_added_gets_columns_that_add_nothing() -> None:
    inner = nn.Identity()
    injector = Injector([(inner, Site("decoder", 0, 1, 4, 4))])
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 1, 3, 4)
    long, short = torch.randn(1, 2, 1, 2, 4), torch.randn(1, 2, 1, 1, 4)
    prompts = [Prompt(keys_values={"decoder": long}), Prompt(keys_values={"decoder": short}), Prompt.empty()]
    bool_mask = torch.ones(3, 3, dtype=torch.bool).tril()[None, None]
    added = torch.zeros(3, 3).masked_fill(~bool_mask, torch.finfo(torch.float32).min)
    for index in ([0, 1], [1, 2], [2, 2]):
        with injector.injecting(Prefixes.of(prompts, torch.tensor(index), q.dtype)):
            by_bool = attention(inner, q, k, v, bool_mask)[0]
            by_sum = attention(inner, q, k, v, added)[0]
            by_cause = attention(inner, q, k, v, None, is_causal=True)[0]
            capped = attention(inner, q, k, v, None, is_causal=True, softcap=1e6)[0]
        close(by_sum, by_bool, 1e-6)
        close(by_cause, by_bool, 1e-6)
        close(capped, by_bool, 1e-5)


def test_sinks_take_their_share_and_nothing_else() -> None:
    """gpt-oss: one more column of scores in the softmax, with no value behind it."""
    torch.manual_seed(0)
    q, k, v, sinks = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4), torch.randn(2)
    scores = (q @ k.transpose(2, 3) / 2).exp()
    expected = (scores / (scores.sum(-1, keepdim=True) + sinks.exp().view(1, 2, 1, 1))) @ v
    mixed = attention(nn.Identity(), q, k, v, None, is_causal=False, s_aux=sinks)[0]
    close(mixed, expected.transpose(1, 2), 1e-5)
