"""Bases whose rotary angles depend on how long a row is: each row has those that it has alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pretend_cuda import pretended_card
from tiny_bases import H, V
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM
from tuning_helpers import METHODS, built, close, gradients, loss_of, run

from orchestrator.tuning import BaseHost, Prompt, Row, RowBatch, forward
from orchestrator.tuning.fast import Fast
from orchestrator.tuning.forward import generate

_SHAPE: dict[str, Any] = {
    "vocab_size": V, "hidden_size": H, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
SHORT = 8  #: rows of more tokens have other angles
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0, 3.0, 5.0, 9.0],
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}
EACH = ["phi3", "llama"]


def bare(name: str) -> Any:
    """Phi-3 with LongRoPE, or Llama with dynamic NTK scaling."""
    torch.manual_seed(0)
    if name == "phi3":
        lengths = {"max_position_embeddings": 64, "original_max_position_embeddings": SHORT}
        model: Any = Phi3ForCausalLM(Phi3Config(**_SHAPE, **lengths, rope_parameters=dict(LONG_ROPE)))
    else:
        model = LlamaForCausalLM(LlamaConfig(**_SHAPE, max_position_embeddings=SHORT, rope_parameters=dict(DYNAMIC)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return model.eval()


def host(name: str) -> BaseHost:
    return BaseHost.from_model(bare(name), None, "causal")


def row(length: int, prompt: int = 0, virtual: int = 0) -> Row:
    ids = [*range(-1, -virtual - 1, -1), *((5 * i + length) % 50 + 5 for i in range(length - virtual))]
    return Row(ids, [-100] * (length - 3) + ids[-3:], prompt)


@pytest.mark.parametrize("name", EACH)
def test_a_row_alone_is_transformers_own(name: str) -> None:
    """Each by a model that has seen no other row."""
    for length in (5, SHORT, SHORT + 1, 13, 20):
        one = row(length)
        with torch.no_grad():
            expected = bare(name)(input_ids=torch.tensor([one.ids])).logits[0, -4:-1]
        close(run(host(name), [one], [Prompt.empty()]).logits, expected, 1e-5)


@pytest.mark.parametrize("name", EACH)
def test_the_angles_differ_at_all(name: str) -> None:
    """Else the other tests could not fail: with the angles of long rows a short one is another."""
    model = bare(name)
    ids = torch.tensor([row(20).ids])
    with torch.no_grad():
        short, long = model(ids[:, :SHORT]).logits[0, -1], model(ids).logits[0, SHORT - 1]
    assert float((short - long).abs().max()) > 1e-3 * float(long.abs().max())


@pytest.mark.parametrize("fast", [Fast(), Fast(pack=False), Fast(share=False), Fast(trim=False)])
@pytest.mark.parametrize("name", EACH)
def test_no_row_turns_its_neighbours(name: str, fast: Fast) -> None:
    base = host(name)
    base.fast = fast
    jobs = [built(base, METHODS[method], seed=i) for i, method in enumerate(("prompt-tuning", "prefix-tuning"))]
    prompts = [job.prompt() for job in jobs]
    mixed = [row(length, number, virtual=3 * (number == 0)) for length in (6, 20, 8, 9, 7, 13) for number in (0, 1)]
    together = run(base, mixed, prompts)
    for number, one in enumerate(mixed):
        alone = run(base, [Row(one.ids, one.labels, 0)], [prompts[one.prompt]])
        close(together.logits[together.row_of == number], alone.logits, 2e-6)
    for number, job in enumerate(jobs):
        mine = [place for place, one in enumerate(mixed) if one.prompt == number]
        single = run(base, [Row(mixed[place].ids, mixed[place].labels, 0) for place in mine], [prompts[number]])
        expected = gradients(job, loss_of(single, range(len(mine))))
        for parameter, gradient in gradients(job, loss_of(together, mine)).items():
            close(gradient, expected[parameter], 1e-5)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("name", EACH)
def test_what_a_row_writes_does_not_depend_on_its_neighbours(name: str, beams: int) -> None:
    """Among them a row that passes the length at which angles change."""
    base = host(name)
    texts = [Row(row(length).ids, None, 0) for length in (4, 7, 12, 20)]
    how: dict[str, Any] = {"max_new_tokens": 4, "beams": beams, "eos_token_ids": []}
    together = generate(base, RowBatch.collate(texts, pad_id=0), [Prompt.empty()], **how)
    for text, written in zip(texts, together, strict=True):
        assert generate(base, RowBatch.collate([text], pad_id=0), [Prompt.empty()], **how) == [written]


def test_a_row_that_stays_on_its_side_is_written_as_transformers_writes_it() -> None:
    base = host("phi3")
    texts = [row(length).ids for length in (4, 12, 20)]
    batch = RowBatch.collate([Row(ids, None, 0) for ids in texts], pad_id=0)
    together = generate(base, batch, [Prompt.empty()], max_new_tokens=4, eos_token_ids=[])
    for ids, written in zip(texts, together, strict=True):
        alone = bare("phi3").generate(torch.tensor([ids]), max_new_tokens=4, min_new_tokens=4, do_sample=False)
        assert alone[0, len(ids) :].tolist() == written


@pytest.mark.parametrize("name", EACH)
def test_long_rows_move_no_weight(name: str) -> None:
    base = host(name)
    before = base.checksum()
    run(base, [row(20)], [Prompt.empty()])
    assert base.checksum() == before
    next(base.model.parameters()).data[0] += 1
    assert base.checksum() != before


@pytest.mark.parametrize("name", EACH)
def test_angles_on_a_card_are_those_of_the_cpu(name: str) -> None:
    """Packed and padded. Where scaling is dynamic, transformers reads from the card how long the longest row is."""
    rows = [row(length) for length in (5, SHORT + 1, 12)]
    plain = host(name)
    with pretended_card() as device:
        there = BaseHost.from_model(bare(name).to("cuda"), None, "causal")
        for pack in (True, False):
            plain.fast = there.fast = Fast(pack=pack)
            batch = RowBatch.collate(rows, pad_id=0)
            expected = forward(plain, batch, [Prompt.empty()]).logits
            assert torch.equal(forward(there, batch, [Prompt.empty()]).logits.cpu(), expected)
            before = len(device.waits)
            forward(there, batch, [Prompt.empty()])
            assert (device.waits[before:] == []) is (name == "phi3")
