"""Rows in one line against rows padded to a rectangle: the same logits, hidden states, losses and gradients."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from tiny_bases import CAUSAL, MASKED, SEQ2SEQ, bare, host, precision
from torch import Tensor, nn
from transformers import BloomConfig, BloomForCausalLM
from transformers.activations import NewGELUActivation
from tuning_helpers import ALL, built, close, gradients, loss_of, pairs, rows, run

from orchestrator.tuning import BaseHost, Prompt, Row, RowBatch, varlen
from orchestrator.tuning.fast import Fast
from orchestrator.tuning.forward import packs
from orchestrator.tuning.packing import Line

PLAIN = Fast(**dict.fromkeys((field.name for field in fields(Fast)), False))
EACH_ALONE = [Fast(labels=False), Fast(trim=False), Fast(pack=False), Fast(share=False), Fast(once=False)]


def jobs_of(base: BaseHost, name: str) -> tuple[list[Any], list[list[Row]]]:
    """Every method that fits, with ragged lengths; two rows or more each."""
    configs = [c for c in ALL if (name, c) in pairs([name])]
    jobs = [built(base, ALL[c], seed=i) for i, c in enumerate(configs)]
    return jobs, [rows(base, job, 2 + i % 3, prompt=i, seed=10 + i) for i, job in enumerate(jobs)]


def both(name: str, dtype: torch.dtype, fast: Fast) -> list[tuple[Any, list[dict[str, torch.Tensor]]]]:
    """Output and each job's gradients, as the plain path and as `fast` computes them."""
    found = []
    for one in (PLAIN, fast):
        base = host(name, dtype)
        base.fast = one
        jobs, batches = jobs_of(base, name)
        mixed = [row for batch in batches for row in batch]
        output = run(base, mixed, [job.prompt() for job in jobs])
        of_job = [[i for i, row in enumerate(mixed) if row.prompt == j] for j in range(len(jobs))]
        total = sum((loss_of(output, own) for own in of_job), start=torch.zeros(()))
        found.append((output, [gradients(job, total) for job in jobs if list(job.parameters())]))
    return found


@pytest.mark.parametrize("name", CAUSAL + MASKED)
def test_jobs_of_all_methods_in_double_precision(name: str) -> None:
    (plain, expected), (fast, found) = both(name, torch.float64, Fast())
    assert torch.equal(plain.labels, fast.labels)
    assert torch.equal(plain.row_of, fast.row_of)
    close(fast.logits, plain.logits, precision(name))
    for one, other in zip(found, expected, strict=True):
        for parameter, gradient in other.items():
            close(one[parameter], gradient, precision(name))


@pytest.mark.parametrize("fast", [Fast(), *EACH_ALONE], ids=str)
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5"])
def test_every_switch_in_single_precision(name: str, fast: Fast) -> None:
    (plain, expected), (other, found) = both(name, torch.float32, fast) if name not in SEQ2SEQ else _seq2seq(fast)
    close(other.logits, plain.logits, 5e-6)
    for one, wanted in zip(found, expected, strict=True):
        for parameter, gradient in wanted.items():
            close(one[parameter], gradient, 2e-5)


def _seq2seq(fast: Fast) -> list[tuple[Any, list[dict[str, torch.Tensor]]]]:
    found = []
    for one in (PLAIN, fast):
        base = host("t5")
        base.fast = one
        job = built(base, ALL["prefix-tuning"])
        output = run(base, rows(base, job, 3), [job.prompt()])
        found.append((output, [gradients(job, loss_of(output, range(3)))]))
    return found


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_all_rows_in_one_call_of_attention(name: str) -> None:
    """As on a GPU, with what its kernel computes written out."""
    found = []
    for ragged in (False, True):
        base = host(name, torch.float64)
        base.ragged = ragged
        jobs, batches = jobs_of(base, name)
        output = run(base, [row for batch in batches for row in batch], [job.prompt() for job in jobs])
        total = output.logits.square().sum()
        found.append((output, [gradients(job, total) for job in jobs if list(job.parameters())]))
    (groups, expected), (one, gradient) = found
    close(one.logits, groups.logits, precision(name))
    for mine, wanted in zip(gradient, expected, strict=True):
        for parameter in wanted:
            close(mine[parameter], wanted[parameter], precision(name))


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "bert"])
def test_hidden_states_stand_where_the_caller_padded(name: str) -> None:
    found = []
    for fast in (PLAIN, Fast()):
        base = host(name, torch.float64)
        base.fast = fast
        method = built(base, ALL["prompt-tuning"])
        batch = RowBatch.collate(rows(base, method, 4), pad_id=0, side="left")
        output = run(base, rows(base, method, 4), [method.prompt()], side="left", hidden=True)
        assert output.hidden is not None
        found.append((output.hidden[batch.attention_mask == 1], output.text_mask))
    close(found[1][0], found[0][0], precision(name))
    assert torch.equal(found[1][1], found[0][1])


def test_what_rows_begin_with_is_computed_once_and_their_ends_not_at_all() -> None:
    ids = [[-1, -2, 5, 6, 7, 8], [-1, -2, 5, 9, 7], [5, 9], [-1, -2, 6]]
    labels = [[-100] * 4 + [7, -100], [-100] * 4 + [7], [-100, 9], [-100, -100, 6]]
    batch = RowBatch.collate([Row(i, la, p) for i, la, p in zip(ids, labels, [0, 0, 1, 2], strict=True)], pad_id=0)
    line = Line.of(batch.trimmed(), [0, 0, 3], causal=True, share=True)
    # row 0 up to its label; row 1 without the three columns of row 0; row 2 shares with nobody, nor does row 3
    assert line.ids.tolist() == [-1, -2, 5, 6, 9, 5, -1, -2]
    assert line.columns.tolist() == [0, 1, 2, 3, 3, 0, 0, 1]
    assert line.at[1, :4].tolist() == [0, 1, 2, 4]
    (group,) = line.groups  # what asks most comes first; contexts end where the asking tokens begin
    shared, last, first, second, alone = group.take.tolist()
    assert shared[3:] == [0, 1, 2]  # asks once, for rows 0 and 1
    assert last[:5] == [8, 9, 10, 6, 7]  # the prefix's three columns stand in front of the last row
    assert first[:4] == [0, 1, 2, 3]
    assert second[:4] == [0, 1, 2, 4]
    assert alone[3:] == [5, 5, 5]
    assert group.seen is not None
    assert group.seen[0, 0].int().tolist() == [[0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]]
    assert group.seen[3, 0, 0].int().tolist() == [1, 1, 1, 1, 0, 0]
    everything = Line.of(batch, [0, 0, 3], causal=True, share=False)
    assert len(everything.ids) == sum(map(len, ids))


def test_what_is_shared_asks_again_where_asking_once_would_not_pay() -> None:
    rows = [Row([-1, *[5 + i] * 40], None, 0) for i in range(3)]
    line = Line.of(RowBatch.collate(rows, pad_id=0), [0], causal=True, share=True)
    (group,) = line.groups
    assert group.take.shape == group.ask.shape == (3, 41)
    assert group.seen is None  # so that torch's kernel skips what is ahead
    assert group.ask[:, 0].tolist() == [0, 0, 0]
    outputs = group.ask.flatten()[line.home]
    assert torch.equal(outputs, torch.arange(len(line.ids)))


def test_rows_before_an_infix_share_only_what_does_not_see_it() -> None:
    batch = RowBatch.collate([Row([5, 6, 7, 8], None, 0, infix_at=2), Row([5, 6, 7, 9], None, 0, infix_at=3)], pad_id=0)
    line = Line.of(batch, [2], causal=True, share=True)
    assert line.ids.tolist() == [5, 6, 7, 8, 7, 9]


def test_long_rows_and_short_ones_look_at_each_other_in_groups_of_their_own() -> None:
    lengths = [400, 380, 20, 390, 24]
    batch = RowBatch.collate([Row([5 + i] * n, None, i) for i, n in enumerate(lengths)], pad_id=0)
    line = Line.of(batch, [0] * 5, causal=True, share=True)
    assert [tuple(group.take.shape) for group in line.groups] == [(3, 400), (2, 24)]
    assert len(line.ids) == sum(lengths)
    together = torch.cat([group.take.flatten() for group in line.groups])
    assert torch.equal(together[line.home], torch.arange(len(line.ids)))


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_padding_never_repeats_a_neighbours_token(name: str) -> None:
    """0 times a neighbour's NaN would be NaN."""
    base = host(name)
    method = built(base, ALL["prefix-tuning"])
    nan = Prompt(torch.full((2, base.embedding_width), torch.nan))
    mine = [Row([5, 6, 7], [-100, -100, 7], 0), Row([8] * 9, [-100] * 8 + [8], 0)]
    lengths = [[-1, 5, 6], [-1, *[6] * 12], [-2, 5]]
    theirs = [Row(ids, [-100] * (len(ids) - 1) + [6], 1) for ids in lengths]
    output = run(base, [*theirs, *mine, *theirs], [method.prompt(), nan])
    own = torch.isin(output.row_of, torch.tensor([3, 4]))
    assert output.logits[own].isfinite().all()
    assert not output.logits[~own].isfinite().any()
    for gradient in gradients(method, loss_of(output, [3, 4])).values():
        assert gradient.isfinite().all()


def test_a_base_that_counts_its_columns_is_not_packed() -> None:
    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=61, hidden_size=16, n_layer=2, n_head=2))
    assert not packs(BaseHost.from_model(model, None, "causal"))


def test_rows_longer_than_a_layers_window_are_padded() -> None:
    found = []
    for fast in (PLAIN, Fast()):
        _, model = bare("gemma2")
        model.config.sliding_window = 4
        for layer in model.model.layers:
            if layer.self_attn.sliding_window is not None:
                layer.self_attn.sliding_window = 4
        base = BaseHost.from_model(model, None, "causal")
        base.fast = fast
        found.append(run(base, [Row(list(range(5, 20)), [-100] * 14 + [9], 0)], [Prompt.empty()]).logits)
    close(found[1], found[0], 1e-6)


def test_gelu_is_one_operation_and_the_same() -> None:
    base = host("gpt2", torch.float64)
    kinds = [type(module) for module in base.model.modules()]
    assert NewGELUActivation not in kinds
    fused = next(module for module in base.model.modules() if isinstance(module, nn.GELU))
    inputs = torch.linspace(-6, 6, 101, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(fused(inputs).sum(), inputs)
    (expected,) = torch.autograd.grad(NewGELUActivation()(inputs).sum(), inputs)
    close(fused(inputs), NewGELUActivation()(inputs), 1e-12)
    close(found, expected, 1e-12)


@pytest.mark.parametrize(("name", "expected"), [("gpt2", True), ("gemma2", False)])
def test_the_kernel_is_asked_for_with_its_gradients(name: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the first forward asks, which takes no gradients itself; the kernel's stand-in is what it must compute."""
    asked = []

    def kernel(ragged: varlen.Ragged, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        asked.append(scale)
        return varlen.one_by_one(ragged, varlen._attend, query, key, value, {})

    monkeypatch.setattr(varlen, "_kernel", kernel)
    monkeypatch.setattr(varlen, "_is_taken", lambda device, dtype: True)
    base = host(name)
    with torch.no_grad():
        assert base.ragged is expected
    assert bool(asked) is expected
