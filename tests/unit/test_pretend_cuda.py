"""The pretended card refuses what a card refuses, and counts what makes the host wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from pretend_cuda import Card, OnCard, pretended_card
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


@pytest.fixture
def device() -> Iterator[Card]:
    with pretended_card() as made:
        yield made


def here(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def there(*shape: int) -> Tensor:
    return here(*shape).to("cuda", non_blocking=True)


REFUSED: dict[str, Callable[[], object]] = {
    "a sum": lambda: there(2, 3) + here(2, 3),
    "a product": lambda: there(2, 3) @ here(3, 2),
    "a row of another": lambda: torch.cat([there(1, 3), here(1, 3)]),
    "a number in a list": lambda: torch.stack([there(2)[0], here(2)[0]]),
    "an embedding": lambda: functional.embedding(torch.tensor([1]), there(3, 2)),
    "an index from the card": lambda: here(3)[torch.tensor([1], device="cuda")],
    "a mask": lambda: torch.where(here(3) > 1, there(3), 0.0),
    "a loss": lambda: functional.cross_entropy(there(2, 3), torch.tensor([0, 1])),
    "a generator of the CPU": lambda: torch.randn(2, device="cuda", generator=torch.Generator()),
    "a list of tensors": lambda: torch._foreach_add([there(2)], [here(2)]),
    "an optimizer's moment": lambda: torch._foreach_lerp_([there(2)], [here(2)], 0.5),
    "a linear layer": lambda: nn.Linear(3, 2)(there(2, 3)),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.usefixtures("device")
def test_devices_do_not_mix(what: str) -> None:
    with pytest.raises(RuntimeError, match="same device|device type for generator"):
        REFUSED[what]()


@pytest.mark.usefixtures("device")
def test_it_is_no_array() -> None:
    with pytest.raises(TypeError, match="can't convert cuda"):
        there(2).numpy()


#: What waits: how often.
WAITS: dict[str, tuple[Callable[[], object], int]] = {
    "a number": (lambda: float(there(3).sum()), 1),
    "a question": (lambda: bool((there(3) > 1).all()), 1),
    "a list": (lambda: there(3).tolist(), 1),
    "a copy to the host": (lambda: there(3).cpu(), 1),
    "a copy into the host's": (lambda: here(3).copy_(there(3)), 1),
    "a list to the card": (lambda: torch.tensor([1, 2], device="cuda"), 1),
    "a blocking copy": (lambda: here(3).to("cuda"), 1),
    "a list as an index": (lambda: there(3)[[0, 2]], 1),
    "a mask as an index": (lambda: there(3)[there(3) > 1], 1),
    "where": (lambda: there(3).nonzero(), 1),
    "counts": (lambda: torch.bincount(there(3).long()), 1),
    "a number as an index": (lambda: there(3)[torch.zeros((), dtype=torch.long, device="cuda")], 1),
    "zeros": (lambda: torch.zeros(3, device="cuda"), 0),
    "random numbers": (lambda: torch.rand(3, device="cuda"), 0),
    "a slice": (lambda: there(3)[1:], 0),
    "an index": (lambda: there(3)[torch.zeros(2, dtype=torch.long, device="cuda")], 0),
    "a number of the host": (lambda: there(3) * torch.tensor(2.0), 0),
    "a step of an optimizer": (lambda: torch._foreach_mul_([there(3)], [0.5]), 0),
}


@pytest.mark.parametrize("what", WAITS)
def test_waits_are_counted(what: str, device: Card) -> None:
    do, times = WAITS[what]
    do()
    assert len(device.waits) == times, device.waits


def test_copies_from_ordinary_memory_are_told_from_others(device: Card) -> None:
    here(3).to("cuda", non_blocking=True)
    assert len(device.pageable) == 1
    found = here(3).pin_memory().to("cuda", non_blocking=True)
    assert (len(device.pageable), device.waits) == (1, [])
    assert found.device == torch.device("cuda:0")
    assert torch.equal(found.cpu(), here(3))


def test_a_model_learns_there_as_on_the_cpu(device: Card) -> None:
    """Tied and moved as a whole; a layer computed again in the backward; dropout from the card's own generator."""

    def learned(where: str) -> list[Tensor]:
        torch.manual_seed(3)
        table, head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        head.weight = table.weight
        layer = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4), nn.Identity())[0]
        model = nn.ModuleList([table, head, layer]).to(where)
        assert head.weight is table.weight
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for seed in range(3):
            generator = torch.cuda.default_generators[0] if where == "cuda" else torch.default_generator
            generator.manual_seed(seed)
            states = checkpoint(layer, table(torch.tensor([1, 2, 5], device=where)), use_reentrant=False)
            states = functional.dropout(states + torch.arange(4.0, device=where), 0.3)
            loss = functional.cross_entropy(head(states), torch.tensor([2, 5, 6], device=where))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [parameter.detach().cpu() for parameter in model.parameters()]

    on_card = learned("cuda")
    assert not any(isinstance(one, OnCard) for one in on_card)
    assert all(torch.equal(a, b) for a, b in zip(on_card, learned("cpu"), strict=True))
    assert device.waits


def test_memory_is_counted_and_may_end() -> None:
    with pretended_card(limit=4000) as device:
        one = torch.zeros(500, device="cuda")
        view = one.view(50, 10)[:, 2:]
        assert device.allocated == 2000
        with pytest.raises(torch.OutOfMemoryError):
            one + torch.zeros(501, device="cuda")
        assert device.allocated == 2000
        del one
        assert device.allocated == 2000  # the view is there
        del view
        assert (device.allocated, device.peak) == (0, 2000)
