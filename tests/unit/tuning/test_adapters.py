"""What PEFT and google-research/prompt-tuning saved becomes an artifact, and goes back bit for bit."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft.utils import load_peft_weights
from safetensors.torch import load_file, save_file
from test_peft_oracle import TARGETS, TEXTS, padded
from tiny_bases import H, V, bare
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM
from tuning_helpers import close, run

from orchestrator.errors import BadInput, NotFound
from orchestrator.manifest import manifest_faults
from orchestrator.tuning import BaseHost, Row, load_prompt
from orchestrator.tuning.adapters import take_in
from orchestrator.tuning.export import export_npy, export_peft, export_vllm

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing.*:FutureWarning", "ignore:.*Could not find a config file.*:UserWarning"
)

N = 4
CAUSAL = ("gpt2", "llama", "qwen3", "gemma2", "opt")
METHODS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
CASES = [(name, method) for name in CAUSAL for method in METHODS]
CASES += [(name, method) for name in ("t5", "bart") for method in METHODS[:2]]


def model_of(name: str) -> tuple[Any, Any]:
    """As `bare`; PEFT knows one width only, and OPT's embeddings may be narrower than its layers."""
    if name != "opt":
        return bare(name)
    torch.manual_seed(0)
    sizes = {"vocab_size": V, "hidden_size": H, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 40}
    config = OPTConfig(**sizes, word_embed_proj_dim=H, max_position_embeddings=64, pad_token_id=0)
    return "causal", OPTForCausalLM(config).eval()


#: PEFT takes a head's width for hidden / heads; Qwen 3's and Gemma 2's may have another one.
SIZES = {
    "qwen3": {"token_dim": 24, "num_attention_heads": 2},
    "gemma2": {"token_dim": 16, "num_attention_heads": 2},
}


def saved_by_peft(name: str, method: str, folder: Path, **options: Any) -> Any:
    """PEFT's own model, its prompt made random, saved by `save_pretrained`."""
    kind, model = model_of(name)
    if method == "PREFIX_TUNING":
        options = SIZES.get(name, {}) | options
    task = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}[kind]
    classes = {
        "PROMPT_TUNING": peft.PromptTuningConfig,
        "P_TUNING": peft.PromptEncoderConfig,
        "PREFIX_TUNING": peft.PrefixTuningConfig,
    }
    wrapped = peft.get_peft_model(model, classes[method](task_type=task, num_virtual_tokens=N, **options))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in wrapped.prompt_encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    wrapped.eval().save_pretrained(folder)
    return wrapped


def base_of(name: str, folder: Path) -> dict[str, Any]:
    """A folder with what the import looks at, and its BaseSpec."""
    kind, model = model_of(name)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return {"id": "tiny", "path": str(folder), "revision": "r", "fingerprint": "sha256:0", "kind": kind}


def peft_logits(model: Any, name: str) -> Tensor:
    ids, mask = padded(TEXTS, 0), padded([[1] * len(t) for t in TEXTS], 0)
    with torch.no_grad():
        if model_of(name)[0] == "seq2seq":
            targets = padded(TARGETS, 0)
            start = torch.cat([torch.ones(len(TARGETS), 1, dtype=torch.long), targets[:, :-1]], dim=1)
            logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=start).logits
            return torch.cat([row[: len(target)] for row, target in zip(logits, TARGETS, strict=True)])
        logits = model(input_ids=ids, attention_mask=mask).logits
    logits = logits[:, logits.shape[1] - ids.shape[1] :]
    return torch.cat([row[: len(text) - 1] for row, text in zip(logits, TEXTS, strict=True)])


def our_logits(name: str, folder: Path) -> Tensor:
    kind, model = model_of(name)
    base, (prompt, _) = BaseHost.from_model(model, None, kind), load_prompt(folder)
    front = [-(j + 1) for j in range(prompt.slots)]
    if base.kind == "seq2seq":
        batch = [Row(front + text, target, 0) for text, target in zip(TEXTS, TARGETS, strict=True)]
    else:
        batch = [Row(front + text, [-100] * (len(front) + 1) + text[1:], 0) for text in TEXTS]
    with torch.no_grad():
        return run(base, batch, [prompt]).logits


@pytest.mark.parametrize(("name", "method"), CASES)
def test_from_peft_and_back(name: str, method: str, tmp_path: Path) -> None:
    """Bit for bit in tensors, 1e-5 in logits."""
    wrapped = saved_by_peft(name, method, tmp_path / "theirs")
    take_in(tmp_path / "theirs", tmp_path / "ours", name="x", base=base_of(name, tmp_path / "base"))
    assert manifest_faults(tmp_path / "ours") == []
    close(our_logits(name, tmp_path / "ours"), peft_logits(wrapped, name), 1e-5)
    export_peft(tmp_path / "ours", tmp_path / "back", base_path="here")
    before, after = (load_peft_weights(str(tmp_path / folder), device="cpu") for folder in ("theirs", "back"))
    assert list(before) == list(after)
    assert torch.equal(before["prompt_embeddings"], after["prompt_embeddings"])
    again = peft.PeftModel.from_pretrained(model_of(name)[1], tmp_path / "back").eval()
    assert again.active_peft_config.base_model_name_or_path == "here"
    assert torch.equal(peft_logits(again, name), peft_logits(wrapped, name))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_ours_through_peft_is_ours(name: str, method: str, tmp_path: Path) -> None:
    """ptq -> PEFT -> ptq, without the copy of PEFT's own files to lean on."""
    base = base_of(name, tmp_path / "base")
    saved_by_peft(name, method, tmp_path / "theirs")
    take_in(tmp_path / "theirs", tmp_path / "ours", name="x", base=base)
    for file in (tmp_path / "ours" / "peft").iterdir():
        file.unlink()
    export_peft(tmp_path / "ours", tmp_path / "there")
    take_in(tmp_path / "there", tmp_path / "again", name="x", base=base)
    first, second = (load_file(tmp_path / folder / "prompt.safetensors") for folder in ("ours", "again"))
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_network_of_a_prefix_is_folded(tmp_path: Path) -> None:
    wrapped = saved_by_peft("gpt2", "PREFIX_TUNING", tmp_path / "theirs", prefix_projection=True, encoder_hidden_size=6)
    take_in(tmp_path / "theirs", tmp_path / "ours", name="x", base=base_of("gpt2", tmp_path / "base"))
    close(our_logits("gpt2", tmp_path / "ours"), peft_logits(wrapped, "gpt2"), 1e-5)


def test_a_prefix_of_a_decoder_behind_an_encoder_is_refused(tmp_path: Path) -> None:
    saved_by_peft("t5", "PREFIX_TUNING", tmp_path / "theirs")
    with pytest.raises(BadInput, match="counts a decoder's positions"):
        take_in(tmp_path / "theirs", tmp_path / "ours", name="x", base=base_of("t5", tmp_path / "base"))


def test_from_and_to_an_array(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(N, H)).astype(np.float32)
    np.save(tmp_path / "prompt.npy", array)
    take_in(tmp_path / "prompt.npy", tmp_path / "ours", name="x", base=base_of("t5", tmp_path / "base"))
    assert torch.equal(load_prompt(tmp_path / "ours")[0].tensors()["embeddings"], torch.from_numpy(array))
    export_npy(tmp_path / "ours", tmp_path / "out.npy")
    assert np.array_equal(np.load(tmp_path / "out.npy"), array)


def test_what_vllm_takes_gives_the_same_logits(tmp_path: Path) -> None:
    """transformers' own `inputs_embeds` is the oracle: it is what vLLM's prompt_embeds stand for."""
    saved_by_peft("llama", "PROMPT_TUNING", tmp_path / "theirs")
    take_in(tmp_path / "theirs", tmp_path / "ours", name="x", base=base_of("llama", tmp_path / "base"))
    export_vllm(tmp_path / "ours", tmp_path / "out", base_path="here")
    namespace: dict[str, Any] = {"__file__": str(tmp_path / "out" / "join.py"), "__name__": "join"}
    exec((tmp_path / "out" / "join.py").read_text(), namespace)
    model = bare("llama")[1]
    embeds = namespace["prompt_embeds"](TEXTS[0], None, model, lambda ids: {"input_ids": ids})
    assert embeds.shape == (N + len(TEXTS[0]), H)
    with torch.no_grad():
        logits = model(inputs_embeds=embeds[None]).logits[0, N:-1]
    close(our_logits("llama", tmp_path / "ours")[: len(TEXTS[0]) - 1], logits, 1e-5)
    told = json.loads((tmp_path / "out" / "prompt.json").read_text())
    assert (told["base"], told["virtual_tokens"], told["input"]) == ("here", N, "{text}")


@pytest.mark.parametrize(("name", "method"), [("gpt2", "PREFIX_TUNING"), ("t5", "PROMPT_TUNING")])
def test_what_a_format_cannot_hold_is_refused(name: str, method: str, tmp_path: Path) -> None:
    saved_by_peft(name, method, tmp_path / "theirs")
    take_in(tmp_path / "theirs", tmp_path / "ours", name="x", base=base_of(name, tmp_path / "base"))
    with pytest.raises(BadInput, match="vLLM's prompt_embeds cannot hold this prompt"):
        export_vllm(tmp_path / "ours", tmp_path / "out")
    if name == "gpt2":
        with pytest.raises(BadInput, match="keys and values in the layers"):
            export_npy(tmp_path / "ours", tmp_path / "out.npy")
    assert not list(tmp_path.glob("out*"))


def spoil(case: str, folder: Path) -> None:
    """Damage a folder of PEFT's."""
    config = json.loads((folder / "adapter_config.json").read_text())
    weights = folder / "adapter_model.safetensors"
    match case:
        case "lora":
            config["peft_type"] = "LORA"
        case "head":
            config["task_type"] = "SEQ_CLS"
        case "other kind":
            config["task_type"] = "SEQ_2_SEQ_LM"
        case "count":
            config["num_virtual_tokens"] = -3
        case "length":
            config["num_virtual_tokens"] = N + 1
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-7])
        case "pickle":
            weights.unlink()
            (folder / "adapter_model.bin").write_bytes(pickle.dumps({"a": 1}))
        case "renamed pickle":
            weights.write_bytes(pickle.dumps({"prompt_embeddings": 1}))
        case "more":
            save_file({"prompt_embeddings": torch.ones(N, H), "classifier.weight": torch.ones(1)}, weights)
        case "nan":
            save_file({"prompt_embeddings": torch.full((N, H), float("nan"))}, weights)
        case "link":
            weights.rename(folder.parent / "elsewhere")
            weights.symlink_to(folder.parent / "elsewhere")
        case "not json":
            (folder / "adapter_config.json").write_text("{")
            return
    (folder / "adapter_config.json").write_text(json.dumps(config))


SPOILT = {
    "lora": "not a prompt of virtual tokens",
    "head": "carries a head",
    "other kind": "trained on a seq2seq base",
    "count": "num_virtual_tokens is -3",
    "length": "shape",
    "truncated": "damaged",
    "pickle": "a pickle can run code",
    "renamed pickle": "damaged",
    "more": "classifier.weight",
    "nan": "not finite",
    "link": "not a plain file",
    "not json": "not JSON",
}


def test_hostile_and_foreign_files_are_refused(tmp_path: Path) -> None:
    base = base_of("gpt2", tmp_path / "base")
    for case, reason in SPOILT.items():
        source = tmp_path / case
        saved_by_peft("gpt2", "PROMPT_TUNING", source)
        spoil(case, source)
        with pytest.raises(BadInput) as caught:
            take_in(source, tmp_path / "ours", name="x", base=base)
        assert reason in str(caught.value), case
        assert not (tmp_path / "ours").exists()
    np.save(tmp_path / "objects.npy", np.array([[{}]]), allow_pickle=True)
    np.save(tmp_path / "wide.npy", np.ones((2, H + 1), np.float32))
    for name in ("objects.npy", "wide.npy"):
        with pytest.raises(BadInput):
            take_in(tmp_path / name, tmp_path / "ours", name="x", base=base)
    with pytest.raises(NotFound):
        take_in(tmp_path / "none.npy", tmp_path / "ours", name="x", base=base)
    assert not (tmp_path / "ours").exists()
