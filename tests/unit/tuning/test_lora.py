"""LoRA against PEFT's own: the layers it chooses, logits, gradients, and the files that it reads back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_peft_oracle import TEXTS, ours, theirs
from tiny_bases import bare, host
from torch.nn import functional
from training_fixtures import make_base, make_dataset, make_run, recipe
from tuning_helpers import built, close, run

from orchestrator.errors import BadInput, MethodDoesNotFit
from orchestrator.training.predict import Predictor
from orchestrator.training.rows import Rows
from orchestrator.tuning import BaseHost, Prompt, Row
from orchestrator.tuning.export import export_npy, export_peft
from orchestrator.tuning.methods.lora import KEPT, Lora
from orchestrator.tuning.own_weights import in_place, load_brought

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

CONFIG = {"type": "lora", "rank": 3, "alpha": 5}


def changed(base: BaseHost, config: dict[str, Any] = CONFIG) -> Lora:
    """In fp32, with a change that is not zero, as it is at the start."""
    method = built(base, config).float()  # type: ignore[attr-defined]
    assert isinstance(method, Lora)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for change in method.changes.values():
            change.B.normal_(0, 0.3, generator=draw)
    return method


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "t5", "bart", "bert"])
def test_it_is_pefts(name: str, tmp_path: Path) -> None:
    base = host(name)
    method = changed(base)
    method.save(tmp_path, "anything")
    _, model = bare(name)
    default = peft.get_peft_model(bare(name)[1], peft.LoraConfig(r=3, fan_in_fan_out=name == "gpt2"))
    assert {n.replace("/", ".") for n in method.changes} == {
        n.removeprefix("base_model.model.").removesuffix(".lora_A")
        for n, _ in default.named_modules()
        if n.endswith(".lora_A")
    }, "the layers that PEFT chooses where nobody says which"
    other = peft.PeftModel.from_pretrained(model, tmp_path, is_trainable=True).eval()
    if base.kind == "masked":
        batch = [Row(text, text, 0) for text in TEXTS]
        output = run(base, batch, [Prompt.empty()])
        logits, labels = output.logits, output.labels
        expected = torch.cat([other(input_ids=torch.tensor([text])).logits[0] for text in TEXTS])
    else:
        logits, labels = ours(base, method)
        expected = theirs(other, "t5" if base.kind == "seq2seq" else name, in_sequence=False)
    close(logits, expected, 1e-5)
    functional.cross_entropy(logits, labels).backward()
    functional.cross_entropy(expected, labels).backward()
    parameters = dict(other.named_parameters())
    for key, mine in method.changes.named_parameters():
        layer, _, part = key.rpartition(".")
        close(
            mine.grad, parameters[f"base_model.model.{layer.replace('/', '.')}.lora_{part}.default.weight"].grad, 1e-5
        )
    with method.off():
        plain = run(base, [Row(TEXTS[0], [-100, *TEXTS[0][1:]], 0)], [Prompt.empty()]).logits
    expected = run(host(name), [Row(TEXTS[0], [-100, *TEXTS[0][1:]], 0)], [Prompt.empty()]).logits
    assert torch.equal(plain, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_what_is_used_is_what_was_trained(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """To the last bit, and the base moves in none."""
    base, fresh = host(name, dtype), host(name, dtype)
    method = changed(base)
    method.save(tmp_path / KEPT, "anything")
    batch = [Row(text, [-100, *text[1:]], 0) for text in TEXTS]
    before, plain = fresh.checksum(), run(fresh, batch, [Prompt.empty()]).logits
    trained = run(base, batch, [Prompt.empty()]).logits
    with in_place(fresh, load_brought(tmp_path, fresh)):
        assert torch.equal(run(fresh, batch, [Prompt.empty()]).logits, trained)
    assert not torch.equal(trained, plain)
    assert torch.equal(run(fresh, batch, [Prompt.empty()]).logits, plain)
    assert fresh.checksum() == before == base.checksum()
    weights = tmp_path / KEPT / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(BadInput, match="does not fit this base, or is damaged"):
        load_brought(tmp_path, fresh)


def test_another_bases_change_is_refused(tmp_path: Path) -> None:
    changed(host("gpt2"), CONFIG | {"targets": ["c_attn"]}).save(tmp_path / KEPT, "anything")
    with pytest.raises(BadInput, match="does not fit this base, or is damaged"):
        load_brought(tmp_path, host("llama"))
    weights = tmp_path / KEPT / "adapter_model.safetensors"
    wide = {name: torch.cat([t, t], dim=1) if "lora_A" in name else t for name, t in load_file(weights).items()}
    save_file(wide, weights)
    with pytest.raises(BadInput, match="does not fit this base, or is damaged"):
        load_brought(tmp_path, host("gpt2"))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_beside_a_narrow_base_it_is_pefts(name: str, tmp_path: Path) -> None:
    """fp32 beside bf16, as PEFT has it by itself: each layer to the last bit, and gradients as far as bf16 counts."""
    base = host(name, torch.bfloat16)
    method = changed(base)
    method.save(tmp_path, "anything")
    model = bare(name)[1].to(torch.bfloat16)
    other = peft.PeftModel.from_pretrained(model, tmp_path, is_trainable=True).eval()
    theirs = dict(other.named_modules())
    draw = torch.Generator().manual_seed(5)
    for key, mine in method.changes.named_children():
        layer = key.replace("/", ".")
        x = torch.randn(7, mine.A.shape[1], generator=draw).bfloat16()
        ours, peer = base.model.get_submodule(layer), theirs[f"base_model.model.{layer}"]
        assert peer.lora_A["default"].weight.dtype == mine.A.dtype == torch.float32
        found, expected = ours(x), peer(x)
        assert found.dtype == expected.dtype == torch.bfloat16
        assert torch.equal(found, expected)
        toward = torch.randn(found.shape, generator=draw).bfloat16()
        found.backward(toward)
        expected.backward(toward)
        for part, parameter in (("A", mine.A), ("B", mine.B)):
            close(parameter.grad, getattr(peer, f"lora_{part}")["default"].weight.grad, 1e-5)


def test_added_to_narrow_weights_it_would_be_gone() -> None:
    """Why it stays beside them: a change of a thousandth of a weight is less than half of bf16's last bit."""
    base = host("gpt2", torch.bfloat16)
    method = changed(base)
    (name, change), *_ = method.changes.named_children()
    with torch.no_grad():
        change.B.mul_(1e-3 / (change.B @ change.A * change.scale).abs().max())
        weight = base.model.get_submodule(name.replace("/", ".")).weight
        product = (change.B @ change.A * change.scale).T
        kept = (weight.float() + product).to(weight.dtype).float() - weight.float()
    large = weight.abs() > 0.25
    assert (kept == 0)[large].all()
    assert (product != 0)[large].all()


def test_the_output_matrix_is_left_alone_where_it_embeds_too() -> None:
    with pytest.raises(MethodDoesNotFit, match="lm_head is the base's input embeddings too"):
        built(host("gpt2"), {"type": "lora", "targets": ["lm_head"]})


def test_layers_that_are_not_there() -> None:
    with pytest.raises(MethodDoesNotFit, match="no linear layer called nothing"):
        built(host("gpt2"), CONFIG | {"targets": ["nothing"]})
    method = changed(host("llama"), CONFIG | {"targets": ["up_proj"]})
    assert {name.split("/")[-1] for name in method.changes} == {"up_proj"}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_from_the_job_to_its_use(dtype: str, tmp_path: Path) -> None:
    """Learns without moving the base; predicts what was scored, alone and beside others; PEFT takes the export."""
    base, dataset = make_base(tmp_path / "base", "gpt2"), make_dataset(tmp_path / "data")
    labels = {"warm": ["warm"], "cold": ["cold"]}
    task = {"type": "classify", "input": "{text} is", "labels": labels}
    near = 1e-5 if dtype == "fp32" else 3e-2  # rows in other company are summed in another order
    of = {"task": task, "base": {"model": "tiny", "dtype": dtype}}
    lora = recipe(CONFIG, **of, train__steps=40, train__lr=0.02, train__batch_size=8)
    second = recipe(CONFIG | {"rank": 2}, **of, train__lr=0.02)
    other = recipe({"type": "prompt-tuning", "length": 2}, **of)
    jobs = {"a": lora, "b": second, "c": other}
    runs = [make_run(tmp_path / name, [one], base=base, dataset=dataset) for name, one in jobs.items()]
    assert [one.train() for one in runs] == [0, 0, 0]
    facts, folders = runs[0].artifact(), [one.jobs[0].artifact(1) for one in runs]
    assert facts["metrics"]["validation"]["accuracy"] > facts["baseline"]["validation"]["accuracy"]
    assert facts["trained_parameters"] == 2 * 3 * (32 + 96)
    rows = list(Rows.open(dataset, "validation"))
    together = list(Predictor.load(folders[0], base, *folders[1:]).answers(rows))
    alone = [list(Predictor.load(folder, base).answers(rows)) for folder in folders]
    for number, row in enumerate(together):
        for one, its in zip(row, alone, strict=True):
            assert one.probabilities == pytest.approx(its[number][0].probabilities, rel=near)
    right = [answer.text == row["label"] for (answer,), row in zip(alone[0], rows, strict=True)]
    assert sum(right) / len(right) == facts["metrics"]["validation"]["accuracy"]
    export_peft(folders[0], tmp_path / "peft", base_path=str(base))
    theirs_dtype = torch.float32 if dtype == "fp32" else torch.bfloat16
    model = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "peft", dtype=theirs_dtype).eval()
    fresh = BaseHost.load(base, kind="causal", dtype=dtype)
    ids = [7, 9, 11, 8]
    with torch.no_grad(), in_place(fresh, load_brought(folders[0], fresh)):
        mine = run(fresh, [Row(ids, [-100, *ids[1:]], 0)], [Prompt.empty()]).logits
        close(mine, model(torch.tensor([ids])).logits[0, :-1], near)
    with pytest.raises(BadInput, match="`lora` has no virtual tokens"):
        export_npy(folders[0], tmp_path / "x.npy")
