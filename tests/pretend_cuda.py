"""A pretended CUDA device: tensors that say `cuda:0` and compute on the CPU, so that tests see what a card refuses.

What a card does and this does too: operations that mix devices fail; nothing is read as a numpy array or a list without
a copy to the host; random numbers come from a generator of the card's own; memory is counted, and may end. Kept in
`Card`: every wait of the host for the card, and every copy to it with the kind of memory that it came from.

As torch's FakeTensor, a tensor is a subclass whose operations arrive in `__torch_dispatch__`, and what names a device
(`torch.zeros(…, device="cuda")`, `.to("cuda")`) is caught by a mode. Unlike there, numbers are computed. To C++ the
tensors are on the CPU, so autograd works as ever; what only C++ asks of a device (which kernel is chosen) is not
pretended.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import pretend_varlen
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.overrides import TorchFunctionMode

DEVICE = torch.device("cuda", 0)
UUID = "5f3b0000-1111-2222-3333-444455556666"

#: Operations whose result, or its size, the host has to know.
_WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
    "equal", "is_nonzero", "allclose", "repeat_interleave",
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
#: Functions that read the host's numbers; every other that is given a device fills memory there.
_FROM_HOST = {torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor, Tensor.new_tensor}


@dataclass
class Card:
    """What has happened on the device."""

    waits: list[str] = field(default_factory=list)  #: what and where: the host waited for the card
    pageable: list[str] = field(default_factory=list)  #: where: a copy to the card that the driver may wait in
    copies: int = 0  #: to the card
    limit: float = float("inf")  #: bytes
    allocated: int = 0
    peak: int = 0
    emptied: int = 0  #: times that the allocator's cache was let go of
    generator: torch.Generator = field(default_factory=lambda: _Generator(DEVICE))
    _held: set[int] = field(default_factory=set)

    current: ClassVar[Card | None] = None

    def wait(self, what: str) -> None:
        self.waits.append(f"{what} at {_where()}")

    def upload(self, source: Tensor, *, non_blocking: bool) -> None:
        self.copies += 1
        if not non_blocking:
            self.wait("a copy to the card that is waited for")
        elif not getattr(source, "pretended_pinned", False):
            self.pageable.append(_where())

    def hold(self, raw: Tensor) -> None:
        """Count the tensor's memory for as long as anything uses it."""
        storage = raw.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if not size or address in self._held:
            return
        if self.allocated + size > self.limit:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
        self._held.add(address)
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        weakref.finalize(storage, self._release, address, size)

    def _release(self, address: int, size: int) -> None:
        self._held.discard(address)
        self.allocated -= size

    @contextmanager
    def randomness(self) -> Iterator[None]:
        """Random numbers inside come from the card's generator."""
        host = torch.default_generator
        before = host.get_state()
        host.set_state(self.generator.get_state())
        try:
            yield
        finally:
            self.generator.set_state(host.get_state())
            host.set_state(before)


def card() -> Card:
    assert Card.current is not None, "no device is pretended here"
    return Card.current


class OnCard(Tensor):
    """A tensor of the card: `raw` holds its numbers, in the same memory."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor) -> OnCard:
        card().hold(raw)
        made: OnCard = Tensor._make_subclass(cls, raw)
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})

    device = property(lambda self: DEVICE)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        assert isinstance(other, OnCard), "`.data` of another device: torch moves the parameter"
        Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.raw = other.raw

    def get_device(self) -> int:
        return 0

    def tolist(self) -> Any:
        card().wait("tolist")
        return self.raw.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.detach().clone().requires_grad_(self.requires_grad)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnCard({self.raw!r})"


class Placing(TorchFunctionMode):
    """Whatever names a device goes through here."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.backward:  # what a checkpoint computes again in it names devices too
            kwargs["grad_tensors"] = kwargs.pop("gradient", None)
            with self:
                return torch.autograd.backward(*args, **kwargs)
        if func is Tensor.cpu:
            return _moved(args[0], torch.device("cpu"))
        if func is Tensor.cuda:
            return _moved(args[0], DEVICE, *args[1:], **kwargs)
        if func is Tensor.to:
            return _to(*args, **kwargs)
        if func is Tensor.new_tensor and isinstance(args[0], OnCard):
            kwargs.setdefault("device", DEVICE)
        if kwargs.get("device") is None:
            return func(*args, **kwargs)
        return _placed(func, args, kwargs, torch.device(kwargs.pop("device")))


def _placed(func: Any, args: Any, kwargs: dict[str, Any], device: torch.device) -> Any:
    """A tensor made on a device."""
    if device.type != "cuda":
        made = func(*args, **kwargs, device=device)
        return made.raw if isinstance(made, OnCard) else made
    if kwargs.get("generator") is not None:
        _check_generator(kwargs["generator"])
    with card().randomness():
        made = func(*args, **kwargs)
    if isinstance(made, OnCard):
        return made
    if func in _FROM_HOST:
        card().upload(made, non_blocking=False)
        made = made.clone()
    return OnCard(made.detach()).requires_grad_(made.requires_grad)


def _to(source: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    copy = bool(kwargs.pop("copy", False))
    other = kwargs.pop("other", args[0] if args and isinstance(args[0], Tensor) else None)
    if other is not None:
        rest = kwargs.get("non_blocking", args[1] if len(args) > 1 else False)
        return _moved(source, other.device, dtype=other.dtype, non_blocking=rest, copy=copy)
    device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
    return _moved(
        source, device or source.device, dtype=dtype, non_blocking=non_blocking, copy=copy, memory_format=layout
    )


def _moved(
    source: Tensor,
    device: torch.device | str | int | None = None,
    non_blocking: bool = False,
    *,
    dtype: torch.dtype | None = None,
    copy: bool = False,
    memory_format: Any = None,
) -> Tensor:
    device = DEVICE if device is None else torch.device(device)
    changes: dict[str, Any] = {"dtype": dtype, "copy": copy}
    if memory_format is not None:
        changes["memory_format"] = memory_format
    if device.type == source.device.type:
        return source.to(**changes)
    if device.type not in ("cpu", "cuda"):
        return (source.raw if isinstance(source, OnCard) else source).to(device=device, **changes)
    if device.type == "cuda":
        card().upload(source, non_blocking=non_blocking)
        found = _Across.apply(source) if source.requires_grad else OnCard(source.detach().clone())
    else:
        card().wait("a copy to the host")
        assert isinstance(source, OnCard)
        found = _Across.apply(source) if source.requires_grad else source.raw.clone()
    moved: Tensor = found.to(**changes)
    return moved


class _Across(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor) -> Tensor:
        return source.raw.clone() if isinstance(source, OnCard) else OnCard(source.detach().clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        return gradient.raw if isinstance(gradient, OnCard) else OnCard(gradient)


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the CPU, its results on the card."""
    name = func._schema.name.rpartition("::")[2]
    foreign: list[Tensor] = []

    def raw(one: Any) -> Any:
        if isinstance(one, OnCard):
            return one.raw
        if isinstance(one, Tensor):
            foreign.append(one)
        elif isinstance(one, torch.Generator):
            _check_generator(one)
        return one

    raw_args, raw_kwargs = _mapped(args, raw), {key: _mapped(value, raw) for key, value in kwargs.items()}
    if foreign:
        _check_devices(func, name, args, foreign)
    if name in _WAITING and not (name == "repeat_interleave" and kwargs.get("output_size") is not None):
        card().wait(name)
    if name in _INDEXING:
        masks = [one for one in args[1] if one is not None and one.dtype in (torch.bool, torch.uint8)]
        if masks:
            card().wait("a mask as an index")
    if name in pretend_varlen.KERNELS:
        made = pretend_varlen.KERNELS[name](*raw_args, **raw_kwargs)
    elif torch.Tag.nondeterministic_seeded in func.tags:
        with card().randomness():
            made = func(*raw_args, **raw_kwargs)
    else:
        made = func(*raw_args, **raw_kwargs)
    return _results(func, args, kwargs, made)


def _results(func: Any, args: Any, kwargs: dict[str, Any], made: Any) -> Any:
    """On the card; what was written in place is the same tensor as before."""
    written = {}
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            written |= dict.fromkeys(argument.alias_info.before_set, value)
            if isinstance(value, OnCard):
                assert value.shape == value.raw.shape, f"{func} changes a tensor's form"
    if not written:
        return _mapped(made, _wrapped)
    returned = func._schema.returns
    results = [
        next((written[name] for name in one.alias_info.before_set if name in written), value)
        if one.alias_info is not None
        else _mapped(value, _wrapped)
        for one, value in zip(returned, made if len(returned) > 1 else [made], strict=False)
    ]
    return None if not returned else results[0] if len(returned) == 1 else tuple(results)


def _wrapped(one: Any) -> Any:
    return OnCard(one) if isinstance(one, Tensor) else one


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """An operation's arguments are numbers, tensors, and lists of them."""
    if isinstance(value, list | tuple):
        return type(value)(_mapped(part, change) for part in value)
    return change(value)


def _check_devices(func: Any, name: str, args: Any, foreign: list[Tensor]) -> None:
    """As a card: numbers of the host without a dimension may take part, indices are copied, all else is refused."""
    if name == "copy_":
        target, source, *rest = args
        if isinstance(target, OnCard):
            card().upload(source, non_blocking=bool(rest and rest[0]))
        else:
            card().wait("a copy to the host")
        return
    if name in _INDEXING and isinstance(args[0], OnCard):
        for index in args[1]:
            if index is not None and not isinstance(index, OnCard):
                card().upload(index, non_blocking=False)
        foreign = [one for one in foreign if not any(one is index for index in args[1])]
    takes_numbers = torch.Tag.pointwise in func.tags or name in _INDEXING or name == "fill_"
    if takes_numbers and all(one.dim() == 0 for one in foreign):
        return
    if foreign:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({func})"
        )


def _check_generator(generator: torch.Generator) -> None:
    if not getattr(generator, "on_card", False):
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")


class _Generator(torch.Generator):
    on_card = False

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made = super().__new__(cls)
        made.on_card = torch.device(device).type == "cuda"
        return made


def _grouped(lists: Any, indices: bool = False, original: Any = torch._C._group_tensors_by_device_and_dtype) -> Any:
    """C++ would say that all of these are on the CPU."""
    assert len({one.device for one in lists[0] if one is not None}) == 1, "one device at a time is all that we pretend"
    found = original(lists, indices)
    return {(next(t for t in made[0][0] if t is not None).device, key[1]): made for key, made in found.items()}


def _pinned(tensor: Tensor, *_: Any) -> Tensor:
    if isinstance(tensor, OnCard):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
    copy = tensor.clone()
    copy.pretended_pinned = True  # type: ignore[attr-defined]
    return copy


def _where() -> str:
    """The nearest lines of ours, or of whoever asks, for a person who has to mend it."""
    frame: Any = sys._getframe(1)
    found: list[str] = []
    while frame is not None and len(found) < 3:
        path = frame.f_code.co_filename
        if "/orchestrator/" in path or ("/transformers/" in path and not found):
            found.append(f"{path.rpartition('/site-packages/')[2].rpartition('/orchestrator/')[2]}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(found) or "a test"


class _Event:
    """Of a stream; recorded means over."""

    def __init__(self, **_: Any) -> None:
        self.at = 0.0

    def record(self, *_: Any) -> None:
        import time

        self.at = time.perf_counter()

    def synchronize(self) -> None:
        card().wait("an event")

    def elapsed_time(self, other: _Event) -> float:
        return 1e3 * (other.at - self.at)


class _Inside:
    """`with torch.cuda.device(0):`"""

    def __init__(self, *_: Any) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None: ...


@contextmanager
def pretended_card(limit: float = float("inf")) -> Iterator[Card]:
    """`cuda:0` is there, in this thread; the others see its memory calls only."""
    patch, swapping = pytest.MonkeyPatch(), torch.__future__.get_swap_module_params_on_conversion()
    made = Card(limit=limit)
    AcceleratorState._reset_state(True)  # accelerate keeps one for each process
    properties = SimpleNamespace(
        name="pretended", total_memory=1 << 33, uuid=UUID, major=9, minor=0, multi_processor_count=1
    )
    stand_ins: dict[str, Callable[..., Any] | Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_initialized": True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "device": _Inside,
        "Event": _Event,
        "is_bf16_supported": lambda *_: True,
        "get_device_properties": lambda *_: properties,
        "get_device_name": lambda *_: properties.name,
        "get_device_capability": lambda *_: (9, 0),
        "default_generators": (made.generator,),
        "get_rng_state": lambda *_: made.generator.get_state(),
        "set_rng_state": lambda state, *_: made.generator.set_state(state),
        "synchronize": lambda *_: made.wait("synchronize"),
        "empty_cache": lambda: setattr(made, "emptied", made.emptied + 1),
        "memory_allocated": lambda *_: made.allocated,
        "max_memory_allocated": lambda *_: made.peak,
        "reset_peak_memory_stats": lambda *_: setattr(made, "peak", made.allocated),
        "mem_get_info": lambda *_: (properties.total_memory - made.allocated, properties.total_memory),
    }
    try:
        for name, value in stand_ins.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch.backends.cudnn, "is_acceptable", lambda _: False)
        patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", _grouped)
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(Tensor, "pin_memory", _pinned)  # not in the mode: another thread has none
        patch.setattr(Tensor, "is_pinned", lambda tensor, *_: getattr(tensor, "pretended_pinned", False))
        torch.__future__.set_swap_module_params_on_conversion(True)
        Card.current = made
        with Placing():
            yield made
    finally:
        Card.current = None
        torch.__future__.set_swap_module_params_on_conversion(swapping)
        patch.undo()
        AcceleratorState._reset_state(True)
