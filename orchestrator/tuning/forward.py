"""The forward of a batch whose rows may belong to several jobs, and writing text with prompts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.errors import BadInput
from orchestrator.tuning import injection, rotary
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.injection import Prefixes
from orchestrator.tuning.layout import labelled, lay_out, row_lengths, seen_rows, starts_of, window
from orchestrator.tuning.packing import Packed
from orchestrator.tuning.prompt import Prompt
from orchestrator.tuning.rows import NO_LABEL, Row, RowBatch, segments
from orchestrator.tuning.transfer import numbers, sent


@dataclass(frozen=True)
class Output:
    """`logits` hold the labelled positions only, row by row from left to right."""

    logits: Tensor  #: [M, V]
    labels: Tensor  #: [M] long: the token that each line of `logits` should predict
    row_of: Tensor  #: [M] long: the row of the batch it comes from
    #: [B, S, H]: last hidden state of the base without its head. Encoder-decoder bases: the decoder's [B, T, H], or
    #: the encoder's where no row has labels or decoder inputs
    hidden: Tensor | None
    text_mask: Tensor  #: [B, S] bool: true tokens, neither padding nor virtual
    starts: Sequence[int]  #: [B + 1], on the host: where each row's lines of `logits` begin, and their number
    scored: Tensor | None = None  #: [M, H]: what the base's output matrix is multiplied with; None: it has none
    ends: Tensor | None = None  #: [B]: the column of `hidden` with each row's last state


def forward(
    host: BaseHost,
    batch: RowBatch,
    prompts: Sequence[Prompt],
    *,
    hidden: bool = False,
) -> Output:
    """Row b of `batch` sees `prompts[b's prompt]` and nothing of the other rows.

    Gradients flow into the prompts only. The vocabulary matrix is multiplied at labelled positions only.
    Raises ValueError where a row names a prompt or a virtual token that is not there, BadInput for another base's
    prompt.
    """
    _check(host, batch, prompts)
    rows = seen_rows(host, batch, hidden=hidden)
    if host.fast.pack and packs(host) and rows.input_ids.shape[1] <= window(host):
        return _packed(host, rows, batch, prompts, hidden=hidden)
    return _padded(host, rows, batch, prompts, hidden=hidden)


def packs(host: BaseHost) -> bool:
    """Whether the base treats rows in one line (`packing.Line`) as it treats them apart; its dropout does not.

    Found by asking it: two short rows, both ways.
    """
    if host.kind == "seq2seq" or not host.takes_positions or not host.sites or host.model.training:
        return False
    if host.packs is None:
        ids = [[3, 4, 5, 6, 7], [3, 4, 6]]
        made = [Row([token % host.vocab_size for token in row], None, 0) for row in ids]
        batch = RowBatch.collate(made, pad_id=host.pad_id)
        with torch.no_grad():
            expected = _padded(host, batch, batch, [Prompt.empty()], hidden=True).hidden
            try:
                found = _packed(host, batch, batch, [Prompt.empty()], hidden=True).hidden
            except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError):
                host.packs = False  # a model of its own kind, which reads its mask or counts its columns
                return False
        assert found is not None
        assert expected is not None
        distance = (found - expected)[batch.text_mask.to(host.device)].abs().max()
        host.packs = bool(distance <= max(1e-3, 8 * torch.finfo(host.dtype).eps) * expected.abs().max())
    return host.packs


def generate(
    host: BaseHost,
    batch: RowBatch,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    beams: int = 1,
    min_new_tokens: int = 0,
    length_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    eos_token_ids: Sequence[int] | None = None,
) -> list[list[int]]:
    """What the base writes after each row: new tokens only, without the end mark.

    Greedy, or the best of a beam search. A row ends at one of `eos_token_ids` (default: the base's own) or after
    `max_new_tokens`. What is written counts for `no_repeat_ngram`, not what stands before it.
    """
    _check(host, batch, prompts)
    if host.kind == "masked" or not host.has_lm_head:
        raise ValueError("this base does not write text")
    rows = batch.to(host.device).on_side("left" if host.kind == "causal" else "right")
    inputs = _inputs(host, rows, prompts)
    ends = end_ids(host) if eos_token_ids is None else list(eos_token_ids)
    settings = deepcopy(host.model.generation_config)
    settings.update(max_new_tokens=max_new_tokens, num_beams=beams, do_sample=False, use_cache=True)
    settings.update(min_new_tokens=min_new_tokens or None, no_repeat_ngram_size=no_repeat_ngram or None)
    settings.update(length_penalty=length_penalty if beams > 1 else 1.0)
    settings.update(eos_token_id=ends or None, pad_token_id=host.pad_id)
    if host.kind == "seq2seq":
        settings.decoder_start_token_id = decoder_start(host)
    del inputs["use_cache"]
    with (
        torch.no_grad(),
        host.injector.injecting(_prefixes(host, rows, prompts)),
        rotary.of_rows(row_lengths(host, batch, [prompt.prefix_length for prompt in prompts])),
        _settings(host.model, settings),
    ):
        written = host.model.generate(**inputs)
    if host.kind == "seq2seq":
        written = written[:, 1:]
    return [_until_end(tokens, set(ends)) for tokens in written.tolist()]


def end_ids(host: BaseHost) -> list[int]:
    """Tokens at which the base itself ends a text; none where neither its settings nor its tokenizer name one."""
    ends = host.model.generation_config.eos_token_id
    if ends is None:
        ends = getattr(host.tokenizer, "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _check(host: BaseHost, batch: RowBatch, prompts: Sequence[Prompt]) -> None:
    for number, prompt in enumerate(prompts):
        if reason := host.misfit(prompt):
            raise BadInput(f"prompt {number} was made for another base: {reason}")
    if any(batch.infix_at) and host.kind != "causal":
        raise ValueError("an infix needs a causal base")
    for row, (chosen, reached) in enumerate(batch.slots):
        if not 0 <= chosen < len(prompts):
            raise ValueError(f"row {row} names prompt {chosen} of {len(prompts)}")
        if reached > prompts[chosen].slots:
            raise ValueError(f"row {row} places virtual token {reached}; its prompt has {prompts[chosen].slots}")


def _padded(host: BaseHost, rows: RowBatch, batch: RowBatch, prompts: Sequence[Prompt], *, hidden: bool) -> Output:
    """[B, S] tokens through the base. `rows`: as it sees them; `batch`: as the caller gave them."""
    lengths = row_lengths(host, batch, [prompt.prefix_length for prompt in prompts])
    asked = labelled(host, rows)
    starts = starts_of(asked[0], len(rows))
    row_of, columns, labels = (sent(t, host.device) for t in asked)
    rows, text_mask = rows.to(host.device), sent(batch.text_mask, host.device)
    inputs = _inputs(host, rows, prompts)
    whole = host.kind != "seq2seq" or rows.labels is not None or rows.decoder_ids is not None
    if whole:
        inputs |= _decoder_inputs(host, rows)
    active = _prefixes(host, rows, prompts)
    with rotary.of_rows(lengths), injection.padded(rows.padded):
        logits, scored, states = _called(host, inputs, active, (row_of, columns), whole=whole, hidden=hidden)
    if states is not None and not (whole and host.kind == "seq2seq"):  # a decoder's columns are never moved
        states = _as_given(states, rows, batch)
    return Output(logits, labels, row_of, states, text_mask, starts, scored, sent(batch.ends, host.device))


def _packed(host: BaseHost, rows: RowBatch, batch: RowBatch, prompts: Sequence[Prompt], *, hidden: bool) -> Output:
    """[1, T] tokens through the base: what it is not asked for is left out."""
    layout = lay_out(host, rows, batch, [prompt.prefix_length for prompt in prompts])
    row_of, labels, asked, positions, text_mask = (
        sent(t, host.device) for t in (layout.row_of, layout.labels, layout.asked, layout.positions, layout.text_mask)
    )
    line = layout.line.to(host.device)
    inputs: dict[str, Any] = {
        "inputs_embeds": _embedded(host, line.ids[None], line.prompts[None], prompts),
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=host.device),  # taken as it is, and not read
        "position_ids": positions[None],
    }
    if layout.segments is not None:
        inputs["token_type_ids"] = sent(layout.segments, host.device)[None]
    if host.kind != "masked":
        inputs["use_cache"] = False
    active = Packed.of(line, prompts, host.dtype)
    at = (torch.zeros_like(asked), asked)
    with rotary.of_rows(layout.lengths):
        logits, scored, states = _called(host, inputs, active, at, whole=True, hidden=hidden)
    if states is not None:
        states = _as_given(functional.embedding(line.at, states[0]), rows, batch)
    ends = sent(batch.ends, host.device)
    return Output(logits, labels, row_of, states, text_mask, layout.starts, scored, ends)


def _called(
    host: BaseHost,
    inputs: dict[str, Any],
    active: Prefixes | Packed | None,
    at: tuple[Tensor, Tensor],
    *,
    whole: bool,
    hidden: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Logits [M, V] at (row, column), what they are made of [M, H], and the last hidden states if asked for.

    `whole`: not the encoder alone.
    """
    logits = scored = None
    with ExitStack() as stack:
        stack.enter_context(host.injector.injecting(active))
        body = host.model.get_decoder() if whole and host.kind == "seq2seq" else host.body
        states = stack.enter_context(_keeping_hidden(body)) if hidden else []
        if whole:
            logits, scored = _logits_at(host, stack, *at)(host.module, inputs)
        else:
            host.body(**inputs)
    if logits is None:
        logits = torch.zeros(0, host.vocab_size, dtype=host.dtype, device=host.device)
    return logits, scored, states[0] if hidden else None


def _prefixes(host: BaseHost, batch: RowBatch, prompts: Sequence[Prompt]) -> Prefixes | None:
    seen_from = None
    if any(batch.infix_at):
        infix = numbers(batch.infix_at, host.device)
        seen_from = torch.where(infix > 0, batch.starts + infix, 0)
    return Prefixes.of(prompts, batch.prompt_index, host.dtype, seen_from)


def _inputs(host: BaseHost, batch: RowBatch, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What every kind of base is called with."""
    inputs: dict[str, Any] = {"attention_mask": batch.attention_mask}
    inputs["inputs_embeds"] = _embedded(host, batch.input_ids, batch.prompt_index[:, None], prompts)
    if host.separator is not None:
        inputs["token_type_ids"] = segments(batch.input_ids, host.separator)
    if host.kind != "masked":
        inputs["use_cache"] = False
    if host.takes_positions:
        shifts = numbers([prompt.prefix_length for prompt in prompts], host.device)[batch.prompt_index]
        counted = (batch.attention_mask.cumsum(1) - 1).clamp_min(0)
        if any(batch.infix_at):  # what stands before an infix keeps its place
            shift = shifts[:, None] * (counted >= numbers(batch.infix_at, host.device)[:, None])
        else:
            shift = shifts[:, None]
        inputs["position_ids"] = counted + shift + host.first_position
    return inputs


def _embedded(host: BaseHost, ids: Tensor, prompt_of: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """[B, S, H]: text from the base's embedding, virtual tokens from the prompt of each token ([B, 1 or S])."""
    text = host.embed(ids.clamp_min(0))
    tables = [prompt.embeddings.to(text) for prompt in prompts if prompt.embeddings is not None]
    if not tables:
        return text
    sizes = [prompt.slots for prompt in prompts]
    firsts = numbers([sum(sizes[:i]) for i in range(len(sizes))], text.device)
    virtual = ids < 0
    index = torch.where(virtual, firsts[prompt_of] - ids - 1, 0)
    # Not index_select: the backward of an embedding adds up in a fixed order on CUDA too.
    placed = functional.embedding(index, torch.cat(tables))
    return torch.where(virtual[..., None], placed, text)


def _decoder_inputs(host: BaseHost, batch: RowBatch) -> dict[str, Tensor]:
    if host.kind != "seq2seq":
        return {}
    own = batch.decoder_ids
    if batch.labels is None:
        assert own is not None
        return {"decoder_input_ids": own.masked_fill(own == NO_LABEL, host.pad_id)}
    start = batch.labels.new_full((len(batch), 1), decoder_start(host))
    targets = batch.labels[:, :-1]
    shifted = torch.cat([start, targets.masked_fill(targets == NO_LABEL, host.pad_id)], dim=1)
    if own is None:
        return {"decoder_input_ids": shifted}
    shifted = functional.pad(shifted, (0, own.shape[1] - shifted.shape[1]), value=host.pad_id)
    return {"decoder_input_ids": torch.where(own == NO_LABEL, shifted, own)}


def decoder_start(host: BaseHost) -> int:
    """What the decoder of an encoder-decoder base is fed first."""
    for settings in (host.model.generation_config, host.model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            if (token := getattr(settings, name, None)) is not None:
                return int(token)
    return host.pad_id


def _logits_at(
    host: BaseHost, stack: ExitStack, row_of: Tensor, columns: Tensor
) -> Callable[[nn.Module, dict[str, Any]], tuple[Tensor | None, Tensor | None]]:
    """A call of the model that gives logits [M, V] at (row_of, columns): its last matrix sees those positions only.
    And what they are made of."""
    head = host.model.get_output_embeddings() if host.has_lm_head else None
    picked: list[Tensor] = []

    def pick(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        states = args[0].flatten(0, 1)
        picked.append(functional.embedding(row_of * args[0].shape[1] + columns, states))
        return (picked[0], *args[1:]) if host.fast.labels else None

    if head is not None:
        stack.callback(head.register_forward_pre_hook(pick).remove)

    def call(module: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        output = module(**inputs)
        if not host.has_lm_head:
            return None, None
        whole = not picked or not host.fast.labels
        return output.logits[row_of, columns] if whole else output.logits, picked[0] if picked else None

    return call


@contextmanager
def _keeping_hidden(body: nn.Module) -> Iterator[list[Tensor]]:
    """A list that holds the body's last hidden state after a forward."""
    states: list[Tensor] = []
    handle = body.register_forward_hook(lambda _module, _args, output: states.append(output.last_hidden_state))
    try:
        yield states
    finally:
        handle.remove()


@contextmanager
def _settings(model: Any, settings: Any) -> Iterator[None]:
    """Generate with these settings alone: what an argument leaves open, transformers takes from the model."""
    before, model.generation_config = model.generation_config, settings
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Passing `no_repeat_ngram_size` with")  # as `generate` says
            yield
    finally:
        model.generation_config = before


def _as_given(hidden: Tensor, rows: RowBatch, batch: RowBatch) -> Tensor:
    """[B, S, H] in the columns of the caller's batch."""
    if rows.side == batch.side:
        return hidden
    columns = rows.columns_from(batch.side).to(hidden.device)
    return hidden.gather(1, columns[..., None].expand_as(hidden))


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    return next((tokens[:i] for i, token in enumerate(tokens) if token in ends), tokens)
