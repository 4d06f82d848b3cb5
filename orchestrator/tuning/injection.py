"""The one place where a prefix enters a model: the attention function that all its layers call.

transformers looks the function up by name (`AttentionInterface`) and hands it queries, keys and values after the rotary
step and before grouped key heads are repeated. Ours puts each row's prefix before the keys and values at every call and
never into a cache, so plain forwards, cached decoding, beam search and recomputation in a backward all see the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from orchestrator.tuning.packing import Packed
from orchestrator.tuning.prompt import Prompt
from orchestrator.tuning.transfer import numbers

NAME = "ptq"  #: of our attention function in transformers' table

SiteName = Literal["encoder", "decoder", "cross"]


@dataclass(frozen=True)
class Site:
    """One attention layer that takes a prefix."""

    name: SiteName
    layer: int  #: counts the layers of the same name
    kv_heads: int
    head_dim: int  #: of keys
    value_dim: int


class Call(NamedTuple):
    """One call of the attention function, as a recording keeps it."""

    module: nn.Module
    key: Tensor  #: [B, kv_heads, S, head_dim]
    value: Tensor  #: [B, kv_heads, S, head_dim]


@dataclass
class Prefixes:
    """The prefixes of one forward: those of k prompts, and which of them each row has."""

    keys_values: dict[str, Tensor]  #: site name -> [k, L, 2, kv_heads, n, head_dim]
    real: dict[str, Tensor | None]  #: site name -> [k, n] bool, False where a prompt is shorter; None: all are real
    index: Tensor  #: [B] long
    seen_from: Tensor | None = None  #: [B] long: column of the first token that sees its row's prefix; None: all do
    masks: dict[tuple[Any, ...], tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, prompts: Sequence[Prompt], index: Tensor, dtype: torch.dtype, seen_from: Tensor | None = None
    ) -> Prefixes | None:
        """None when no prompt has keys and values. `dtype`: the base's."""
        names = sorted({name for prompt in prompts for name in prompt.keys_values})
        if not names:
            return None
        stacked = {
            name: _stack([prompt.keys_values.get(name) for prompt in prompts], index.device, dtype) for name in names
        }
        return cls({n: s[0] for n, s in stacked.items()}, {n: s[1] for n, s in stacked.items()}, index, seen_from)

    def rows(self, count: int) -> Tensor:
        """[count] prompt of each row; beam search repeats every row of the batch."""
        return self.index.repeat_interleave(count // len(self.index))

    def at(self, site: Site, count: int) -> Tensor:
        """[count, 2, kv_heads, n, head_dim]: the prefix of each row at one layer."""
        layer = self.keys_values[site.name][:, site.layer]
        if len(layer) == 1:
            return layer.expand(count, -1, -1, -1, -1)
        # Not index_select: the backward of an embedding adds up in a fixed order on CUDA too.
        return functional.embedding(self.rows(count), layer.flatten(1)).unflatten(1, layer.shape[1:])

    def mask(self, name: str, mask: Tensor | None, causal: bool, query: Tensor, keys: int) -> Tensor | None:
        """`mask` with the prefix's columns before it; the layers of a forward share one."""
        key = (name, id(mask), causal, len(query), query.shape[2], keys)
        known = self.masks.get(key)
        if known is not None and known[0] is mask:
            return known[1]
        if len(self.masks) >= 8:  # decoding asks for new ones at every step
            self.masks.clear()
        extended = self._extended(name, mask, causal, query, keys)
        self.masks[key] = (mask, extended)
        return extended

    def _extended(self, name: str, mask: Tensor | None, causal: bool, query: Tensor, keys: int) -> Tensor | None:
        real = self.real[name]
        if mask is None and real is None and self.seen_from is None and not causal:
            return None
        if mask is None:
            mask = torch.ones(query.shape[2], keys, dtype=torch.bool, device=query.device)
            mask = (mask.tril() if causal else mask)[None, None]
        if real is None:
            columns = mask.new_ones(1, 1, 1, self.keys_values[name].shape[4], dtype=torch.bool)
        else:
            columns = real[self.rows(len(query))][:, None, None]
        if self.seen_from is not None:
            columns = columns & self._sees(self.seen_from, query, keys)
        if mask.dtype != torch.bool:
            columns = torch.zeros_like(columns, dtype=mask.dtype).masked_fill(~columns, torch.finfo(mask.dtype).min)
        count = max(len(columns), len(mask))
        columns = columns.expand(count, mask.shape[1], mask.shape[2], -1)
        return torch.cat([columns, mask.expand(count, -1, -1, -1)], dim=-1)

    @staticmethod
    def _sees(seen_from: Tensor, query: Tensor, keys: int) -> Tensor:
        """[B, 1, Q, 1]: the queries are the last Q of the columns that have keys, cached ones included."""
        count, asked = len(query), query.shape[2]
        columns = torch.arange(keys - asked, keys, device=query.device)
        first = seen_from.repeat_interleave(count // len(seen_from))
        return (columns[None] >= first[:, None])[:, None, :, None]


class Attachment:
    """Ties one attention module to its sites: one, or one for each layer that shares the module (ALBERT)."""

    def __init__(self, injector: Injector, module: nn.Module) -> None:
        self.injector = injector
        self.sites: list[Site] = []
        self.calls = 0
        module._ptq_attachment = self  # type: ignore[assignment]

    def next_site(self) -> Site:
        site = self.sites[self.calls % len(self.sites)]
        self.calls += 1
        return site


class Injector:
    """The sites of one model in the order of its forward, and the prefixes that are active now."""

    def __init__(self, sites: Sequence[tuple[nn.Module, Site]]) -> None:
        self.sites = [site for _, site in sites]
        self.active: Prefixes | Packed | None = None
        attachments: dict[nn.Module, Attachment] = {}
        for module, site in sites:
            attachment = attachments.get(module) or attachments.setdefault(module, Attachment(self, module))
            attachment.sites.append(site)
        self._attachments = list(attachments.values())

    @contextmanager
    def injecting(self, active: Prefixes | Packed | None) -> Iterator[None]:
        """Every forward inside sees the prefixes."""
        with self.restored((active, [0] * len(self._attachments))):
            yield

    def state(self) -> tuple[Prefixes | Packed | None, list[int]]:
        return self.active, [attachment.calls for attachment in self._attachments]

    @contextmanager
    def restored(self, state: tuple[Prefixes | Packed | None, list[int]]) -> Iterator[None]:
        """As it was when `state` was taken: a recomputation in the backward must see what its forward saw."""
        before = self.state()
        self._set(state)
        try:
            yield
        finally:
            self._set(before)

    def _set(self, state: tuple[Prefixes | Packed | None, list[int]]) -> None:
        self.active, calls = state
        for attachment, count in zip(self._attachments, calls, strict=True):
            attachment.calls = count


def register() -> None:
    """Make our attention function known to transformers; doing it again changes nothing."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)


@contextmanager
def padded(known: bool) -> Iterator[None]:
    """Whether any row of the forwards inside is padded, for `mask`."""
    token = _PADDED.set(known)
    try:
        yield
    finally:
        _PADDED.reset(token)


def mask(*sizes: Any, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """transformers' own, which leaves a mask out where no row is padded, and waits for a GPU to say whether."""
    known = _PADDED.get()
    if attention_mask is not None and known is False:
        attention_mask = None
    if attention_mask is not None and known:
        options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(*sizes, attention_mask=attention_mask, **options)


@contextmanager
def recording() -> Iterator[list[Call]]:
    """Collects every call of the attention function inside, in order."""
    calls: list[Call] = []
    token = _RECORDING.set(calls)
    try:
        yield calls
    finally:
        _RECORDING.reset(token)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention with the row's prefix before its keys.

    `query` [B, heads, Q, d], `key` and `value` [B, kv_heads, K, d], `attention_mask` [B or 1, 1, Q, K] bool (True: may
    look) or float (added), or None: causal if the layer is. Returns [B, Q, heads, d].
    """
    calls = _RECORDING.get()
    if calls is not None:
        calls.append(Call(module, key, value))
    attachment: Attachment | None = module.__dict__.get("_ptq_attachment")
    active = None if attachment is None else attachment.injector.active
    if attachment is not None and active is not None:
        site = attachment.next_site()
        if isinstance(active, Packed):
            return active.attention(partial(_attend, module), site.layer, query, key, value, options), None
        if site.name in active.keys_values:
            prefix = active.at(site, len(query)).to(key.dtype)
            causal = _is_causal(module, query, options)
            attention_mask = active.mask(site.name, attention_mask, causal, query, key.shape[2])
            options["is_causal"] = False
            if options.get("position_bias") is not None:  # T5: no distance to a prefix
                options["position_bias"] = functional.pad(options["position_bias"], (prefix.shape[3], 0))
            key, value = torch.cat([prefix[:, 0], key], dim=2), torch.cat([prefix[:, 1], value], dim=2)
    return _attend(module, query, key, value, attention_mask, **options)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        return _eager(module, query, key, value, attention_mask, **options)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def checkpoint_layers(model: nn.Module, injector: Injector, on: bool) -> None:
    """Recompute each layer in the backward instead of keeping its activations, in train and in eval mode.

    transformers' own switch works in train mode only, where it would also turn the base's dropout on.
    """
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.__dict__.pop("forward", None)
            if on:
                layer.forward = partial(_checkpointed, injector, partial(type(layer).forward, layer))


_RECORDING: ContextVar[list[Call] | None] = ContextVar("ptq_recording", default=None)
_PADDED: ContextVar[bool | None] = ContextVar("ptq_padded", default=None)  # None: nobody has said


def _checkpointed(injector: Injector, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return layer(*args, **kwargs)
    state = injector.state()
    return checkpoint(
        layer, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), injector.restored(state)), **kwargs
    )


def _stack(prefixes: Sequence[Tensor | None], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """k of [L, 2, kv_heads, n, head_dim], some shorter or None -> [k, L, 2, kv_heads, n, head_dim] and [k, n] bool."""
    layers, _, heads, _, width = next(prefix for prefix in prefixes if prefix is not None).shape
    nothing = torch.zeros(layers, 2, heads, 0, width, device=device, dtype=dtype)
    moved = [nothing if prefix is None else prefix.to(device, dtype) for prefix in prefixes]
    lengths = [prefix.shape[3] for prefix in moved]
    longest = max(lengths)
    stacked = torch.stack([functional.pad(prefix, (0, 0, 0, longest - prefix.shape[3])) for prefix in moved])
    if min(lengths) == longest:
        return stacked, None
    return stacked, numbers([[column < length for column in range(longest)] for length in lengths], device)


def _is_causal(module: nn.Module, query: Tensor, options: dict[str, Any]) -> bool:
    """What a missing mask means, by sdpa_attention_forward's rule."""
    said = options.get("is_causal")
    return query.shape[2] > 1 and bool(getattr(module, "is_causal", True) if said is None else said)


def _eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Written out, for what torch's fused attention cannot do: capped scores (Gemma 2) and sinks (gpt-oss, [heads])."""
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is None and _is_causal(module, query, options):
        attention_mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
    if attention_mask is not None:
        lowest = torch.finfo(scores.dtype).min
        masked = attention_mask.dtype == torch.bool
        scores = scores.masked_fill(~attention_mask, lowest) if masked else scores + attention_mask
    if s_aux is not None:
        sinks = s_aux.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = functional.dropout(weights[..., : key.shape[2]], dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights
