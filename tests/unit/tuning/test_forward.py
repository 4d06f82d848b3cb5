"""The forward against transformers itself: no prompt, each row alone, its own eager attention."""

from __future__ import annotations

import pytest
import torch
from tiny_bases import CAUSAL, EACH, EACH_KIND, H, V, bare, host, precision
from tuning_helpers import ALL, METHODS, built, close, gradients, loss_of, pairs, rows, run

from orchestrator.errors import BadInput
from orchestrator.tuning import BaseHost, Prompt, Row, RowBatch, forward
from orchestrator.tuning.forward import packs
from orchestrator.tuning.methods.deep import keys_values_of_text


def plain_logits(name: str, row: Row) -> torch.Tensor:
    """[M, V]: transformers' own forward of one row, eager attention, no padding."""
    kind, model = bare(name)
    model.double().set_attn_implementation("eager")
    ids = torch.tensor([row.ids])
    assert row.labels is not None
    labels = torch.tensor([row.labels])
    with torch.no_grad():
        if kind == "seq2seq":
            start = torch.cat([torch.tensor([[1]]), labels[:, :-1]], dim=1)
            return model(input_ids=ids, decoder_input_ids=start).logits[0]
        logits = model(input_ids=ids).logits[0]
    at = (labels[0] != -100).nonzero()[:, 0]
    return logits[at - 1 if kind == "causal" else at]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", EACH)
def test_without_a_prompt_it_is_transformers_own_forward(name: str, side: str) -> None:
    base = host(name, torch.float64)
    batch = rows(base, built(base, METHODS["head"]), 4, seed=3)
    output = run(base, batch, [Prompt.empty()], side=side)
    close(output.logits, torch.cat([plain_logits(name, row) for row in batch]), precision(name))
    assert output.labels.tolist() == [label for row in batch for label in row.labels or [] if label != -100]


@pytest.mark.parametrize("name", CAUSAL)
def test_a_prefix_taken_from_text_acts_as_that_text(name: str) -> None:
    """A causal base sees the same whether a beginning is read or its keys and values are injected."""
    base = host(name, torch.float64)
    beginning = torch.tensor([7, 30, 12, 45, 9])
    prefix = Prompt(keys_values={n: t.double() for n, t in keys_values_of_text(base, beginning).items()})
    texts = rows(base, built(base, METHODS["head"]), 3, seed=1)
    injected = run(base, texts, [prefix])
    read = [Row(beginning.tolist() + r.ids, [-100] * 5 + (r.labels or []), 0) for r in texts]
    close(injected.logits, run(base, read, [Prompt.empty()]).logits, 3e-6)  # the start is kept in fp32


@pytest.mark.parametrize("name", CAUSAL)
def test_virtual_tokens_with_a_words_embedding_act_as_the_word(name: str) -> None:
    base = host(name, torch.float64)
    word = torch.tensor([[17, 23]])
    prompt = Prompt(base.embed(word)[0])
    output = run(base, [Row([5, -1, 8, -2, -1, 11], [-100, -100, 8, -100, -100, 11], 0)], [prompt])
    expected = run(base, [Row([5, 17, 8, 23, 17, 11], [-100, -100, 8, -100, -100, 11], 0)], [Prompt.empty()])
    close(output.logits, expected.logits, precision(name))


@pytest.mark.parametrize(("name", "config"), pairs(EACH_KIND))
def test_neither_padding_side_nor_batch_mates_change_a_row(name: str, config: str) -> None:
    base = host(name, torch.float64)
    method = built(base, ALL[config])
    batch = rows(base, method, 4, seed=5)
    long = Row([9] * 20, [-100] * 19 + [9] if base.kind != "seq2seq" else [9] * 12, 1)
    alone = [run(base, [row], [method.prompt()], hidden=True) for row in batch]
    for side in ("left", "right"):
        together = run(base, [*batch, long], [method.prompt(), Prompt.empty()], side=side, hidden=True)
        assert together.hidden is not None
        for number, single in enumerate(alone):
            assert single.hidden is not None
            close(together.logits[together.row_of == number], single.logits, precision(name))
            if base.kind == "seq2seq":  # the decoder's
                count = single.hidden.shape[1]
                close(together.hidden[number, :count], single.hidden[0], precision(name))
                continue
            close(
                together.hidden[number][together.text_mask[number]],
                single.hidden[0][single.text_mask[0]],
                precision(name),
            )


@pytest.mark.parametrize("name", [*EACH_KIND, "albert", "gemma2"])
def test_rows_of_three_jobs_in_one_batch_equal_each_alone(name: str) -> None:
    base = host(name, torch.float64)
    jobs = [built(base, METHODS[c], seed=i) for i, c in enumerate(["prompt-tuning", "prefix-tuning-mlp", "p-tuning"])]
    batches = [rows(base, job, 3, prompt=i, seed=10 + i) for i, job in enumerate(jobs)]
    mixed = [row for group in zip(*batches, strict=True) for row in group]  # rows of the jobs take turns
    together = run(base, mixed, [job.prompt() for job in jobs])
    total = sum(loss_of(together, [i for i, row in enumerate(mixed) if row.prompt == j]) for j in range(3))
    for number, (job, batch) in enumerate(zip(jobs, batches, strict=True)):
        single = loss_of(run(base, [Row(r.ids, r.labels, 0) for r in batch], [job.prompt()]), range(3))
        own = loss_of(together, [i for i, row in enumerate(mixed) if row.prompt == number])
        close(own, single, precision(name))
        fused, alone = gradients(job, total), gradients(job, single)
        for parameter in alone:
            close(fused[parameter], alone[parameter], precision(name))


def test_prefixes_of_different_lengths_share_a_batch() -> None:
    base = host("t5", torch.float64)
    short, long = (built(base, {"type": "prefix-tuning", "length": n}, seed=n) for n in (1, 6))
    mixed = rows(base, short, 2, prompt=0) + rows(base, long, 2, prompt=1, seed=1)
    together = run(base, mixed, [short.prompt(), long.prompt()])
    for number, row in enumerate(mixed):
        alone = run(base, [Row(row.ids, row.labels, 0)], [(short, long)[row.prompt].prompt()])
        close(together.logits[together.row_of == number], alone.logits, precision("t5"))


def test_a_broken_job_does_not_touch_its_batch_mates() -> None:
    """One job's prompt is NaN: the other's loss and gradient stay the same, bit for bit."""
    base = host("llama")
    healthy = built(base, METHODS["prefix-tuning"])
    nan = Prompt(torch.full((2, base.embedding_width), torch.nan))
    broken = Prompt(keys_values={n: t.detach() * torch.nan for n, t in healthy.prompt().keys_values.items()})
    mixed = [*rows(base, healthy, 2), Row([-1, 5, -2, 6], [-100, -100, -100, 6], 1), Row([5, 6], [-100, 6], 2)]
    sane = [*rows(base, healthy, 2), Row([8, 5, 8, 6], [-100, -100, -100, 6], 1), Row([5, 6], [-100, 6], 2)]
    with_nan = loss_of(run(base, mixed, [healthy.prompt(), nan, broken]), [0, 1])
    without = loss_of(run(base, sane, [healthy.prompt(), Prompt.empty(), healthy.prompt().detach()]), [0, 1])
    assert torch.equal(with_nan, without)
    for name, gradient in gradients(healthy, without).items():
        assert torch.equal(gradients(healthy, with_nan)[name], gradient)


@pytest.mark.parametrize(
    ("name", "config"),
    [pair for pair in pairs(EACH) if pair[1] in {"prompt-tuning", "prefix-tuning", "p-tuning-v2", "infix"}],
)
def test_checkpointing_changes_no_gradient(name: str, config: str) -> None:
    base = host(name, torch.float64)
    method = built(base, ALL[config])
    batch = rows(base, method, 2)
    expected = gradients(method, loss_of(run(base, batch, [method.prompt()]), range(2)))
    base.set_checkpointing(True)
    loss = loss_of(run(base, batch, [method.prompt()]), range(2))
    run(base, batch, [Prompt(torch.zeros(4, base.embedding_width).double())])  # another forward before the backward
    for parameter, gradient in gradients(method, loss).items():
        close(gradient, expected[parameter], precision(name))
    base.set_checkpointing(False)
    assert not any("forward" in vars(module) for module in base.model.modules())


def test_checkpointing_keeps_fewer_activations() -> None:
    base = host("llama")
    method = built(base, METHODS["prefix-tuning"])
    sizes = {}
    for on in (False, True):
        base.set_checkpointing(on)
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            run(base, rows(base, method, 4), [method.prompt()])
        sizes[on] = sum(kept)
    assert sizes[True] < 0.5 * sizes[False]


@pytest.mark.parametrize("name", EACH)
def test_no_gradient_reaches_the_base_and_no_weight_moves(name: str) -> None:
    base = host(name)
    before, bits = base.checksum(), {n: p.clone() for n, p in base.model.named_parameters()}
    for _, config in pairs([name]):
        method = built(base, ALL[config])
        if not method.length:
            continue
        optimizer = torch.optim.AdamW(method.parameters(), lr=0.1)
        for step in range(2):
            loss_of(run(base, rows(base, method, 3, seed=step), [method.prompt()]), range(3)).backward()
            optimizer.step()
    assert all(p.grad is None and not p.requires_grad for p in base.model.parameters())
    assert all(torch.equal(p, bits[n]) for n, p in base.model.named_parameters())
    assert base.checksum() == before


def test_the_vocabulary_matrix_sees_labelled_positions_only() -> None:
    base = host("gpt2")
    assert packs(base)  # found by forwards of its own
    seen: list[torch.Size] = []
    base.model.get_output_embeddings().register_forward_hook(lambda _m, args, _out: seen.append(args[0].shape))
    run(base, [Row([5, 6, 7, 8, 9, 10], [-100, -100, -100, -100, -100, 10], 0)], [Prompt.empty()])
    run(base, [Row([5, 6, 7], None, 0)], [Prompt.empty()], hidden=True)
    assert seen == [(1, H), (0, H)]


@pytest.mark.parametrize("name", EACH_KIND)
def test_hidden_states_without_labels(name: str) -> None:
    base = host(name)
    output = run(base, [Row([5, 6, 7], None, 0), Row([5], None, 0)], [Prompt.empty()], hidden=True)
    assert output.hidden is not None
    assert output.hidden.shape == (2, 3, H)
    assert output.logits.shape == (0, V)
    assert output.text_mask.tolist() == [[True, True, True], [True, False, False]]


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_rows_with_decoder_inputs_of_their_own_stand_beside_rows_with_targets(name: str) -> None:
    """A head's row, which asks for states, in one forward with one that learns to write."""
    base = host(name, torch.float64)
    read = Row([5, 6, 7], None, 0, decoder_ids=[1, 5, 6])
    written = Row([8, 9], [7, 8, 9, 4, 6], 0)
    alone = [run(base, [row], [Prompt.empty()], hidden=True) for row in (read, written)]
    for side in ("left", "right"):
        both = run(base, [read, written], [Prompt.empty()], side=side, hidden=True)
        close(both.logits, alone[1].logits, precision(name))
        assert both.hidden is not None
        assert both.ends is not None
        assert both.ends.tolist()[0] == 2
        for number, one in enumerate(alone):
            assert one.hidden is not None
            close(both.hidden[number, : one.hidden.shape[1]], one.hidden[0], precision(name))


def test_decoder_inputs_may_be_given() -> None:
    base = host("bart")
    shifted = run(base, [Row([5, 6], [7, 8, 9], 0)], [Prompt.empty()])
    given = run(base, [Row([5, 6], [7, 8, 9], 0, decoder_ids=[1, 7, 8])], [Prompt.empty()])
    assert torch.equal(shifted.logits, given.logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases_take_fp32_prompts(dtype: torch.dtype) -> None:
    base = host("llama", dtype)
    prefix, words = (
        built(base, METHODS["prefix-tuning"]).to(torch.float32),
        built(base, METHODS["p-tuning"]).to(torch.float32),
    )
    output = run(base, [*rows(base, prefix, 2), *rows(base, words, 2, prompt=1)], [prefix.prompt(), words.prompt()])
    assert output.logits.dtype == dtype
    output.logits.float().sum().backward()
    for parameter in [*prefix.parameters(), *words.parameters()]:
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


def test_a_prompt_leaves_nothing_behind() -> None:
    """After a forward the model is the plain base again for anyone who calls it."""
    base = host("gpt2")
    ids = torch.tensor([[5, 6, 7]])
    before = base.model(ids).logits
    method = built(base, METHODS["prefix-tuning"])
    run(base, rows(base, method, 1), [method.prompt()])
    assert torch.equal(base.model(ids).logits, before)


@pytest.mark.parametrize(
    ("row", "message"),
    [(Row([5, -4], None, 0), "virtual token 4; its prompt has 3"), (Row([5], None, 1), "prompt 1 of 1")],
)
def test_a_row_cannot_name_what_is_not_there(row: Row, message: str) -> None:
    base = host("gpt2")
    with pytest.raises(ValueError, match=message):
        run(base, [row], [built(base, METHODS["prompt-tuning"]).prompt()])


def test_an_empty_row_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1"):
        RowBatch.collate([Row([5], None, 0), Row([], None, 0)], pad_id=0)


def test_dropout_of_the_base_is_off_until_asked_for() -> None:
    kind, model = bare("bert")
    model.train()
    base = BaseHost.from_model(model, None, kind)
    batch = RowBatch.collate([Row([5, 6, 7, 8], None, 0)], pad_id=0)
    first, second = (forward(base, batch, [Prompt.empty()], hidden=True).hidden for _ in range(2))
    assert first is not None
    assert torch.equal(first, second)  # type: ignore[arg-type]
    base.set_dropout(True)
    assert not torch.equal(first, forward(base, batch, [Prompt.empty()], hidden=True).hidden)  # type: ignore[arg-type]


@pytest.mark.parametrize("config", ["prompt-tuning", "prefix-tuning"])
def test_a_prompt_of_another_base_is_refused(config: str) -> None:
    base, other = host("gpt2"), host("albert")
    prompt = built(other, METHODS[config]).prompt()
    with pytest.raises(BadInput, match="another base"):
        run(base, [Row([5], None, 0)], [prompt])


@pytest.mark.parametrize("side", ["left", "right"])
def test_nothing_can_predict_the_first_token_of_a_causal_row(side: str) -> None:
    output = run(host("gpt2"), [Row([5, 6], [5, 6], 0), Row([7, 8, 9], [7, -100, 9], 0)], [Prompt.empty()], side=side)
    assert (output.labels.tolist(), output.row_of.tolist()) == ([6, 9], [0, 1])


def test_a_difference_is_seen() -> None:
    """By what the other tests compare with."""
    one = torch.tensor([1.0, -4.0])
    close(one + 1e-6, one, 1e-6)
    for other, relative in ((one + 1e-4, 1e-5), (one[:1], 1.0), (one * torch.nan, 1.0)):
        with pytest.raises(AssertionError):
            close(other, one, relative)
