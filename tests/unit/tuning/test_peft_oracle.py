"""PEFT computes the same logits and gradients, in memory and from our exported files."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tiny_bases import H, bare, host
from torch import Tensor
from torch.nn import functional
from tuning_helpers import built, close, run

from orchestrator.errors import BadInput, NotFound
from orchestrator.tuning import BaseHost, Prompt, Row, TunedMethod, save_prompt
from orchestrator.tuning.export import main

# PEFT 0.21 reads a property that transformers 5.23 has renamed, and warns about its own position ids.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

N = 4
TEXTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [15, 16, 17, 18, 19]]
TARGETS = [[20, 21, 22], [23, 24], [25]]
FRONT = [-(j + 1) for j in range(N)]
P_TUNING = {"type": "p-tuning", "length": N}
CONFIGS: dict[str, dict[str, Any]] = {
    "prompt-tuning": {"type": "prompt-tuning", "length": N},
    "prefix-tuning": {"type": "prefix-tuning", "length": N},
    "p-tuning": P_TUNING,
    "p-tuning-v2": {"type": "p-tuning-v2", "length": N, "dropout": 0},
    "p-tuning-v2-mlp": {"type": "p-tuning-v2", "length": N, "dropout": 0, "reparameterization": {"hidden": 6}},
}
EMBEDDING_ONLY = {"type": "prefix-tuning", "length": N, "embedding_only": True, "reparameterization": {"hidden": 6}}
#: PEFT's perceptron reads inputs of kv_heads x head_dim numbers: as wide as an embedding on GPT-2 only.
WIDE = {"p-tuning-v2-mlp"}
CAUSAL = [(name, m) for name in ("gpt2", "llama", "qwen3") for m in CONFIGS if m not in WIDE or name == "gpt2"]


def ours(base: BaseHost, method: TunedMethod) -> tuple[Tensor, Tensor]:
    """(logits, labels) at every text position but each row's first; seq2seq: at every target."""
    front = FRONT if method.slots == "front" else []
    if base.kind == "seq2seq":
        batch = [Row(front + text, target, 0) for text, target in zip(TEXTS, TARGETS, strict=True)]
    else:
        batch = [Row(front + text, [-100] * (len(front) + 1) + text[1:], 0) for text in TEXTS]
    output = run(base, batch, [method.prompt()])
    return output.logits, output.labels


def theirs(model: Any, name: str, *, in_sequence: bool) -> Tensor:
    """PEFT's logits at the same positions, from one right-padded batch."""
    ids, mask = padded(TEXTS, 0), padded([[1] * len(t) for t in TEXTS], 0)
    if name == "t5":
        targets = padded(TARGETS, 0)
        start = torch.cat([torch.ones(len(TARGETS), 1, dtype=torch.long), targets[:, :-1]], dim=1)
        logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=start).logits
        return torch.cat([row[: len(target)] for row, target in zip(logits, TARGETS, strict=True)])
    logits = model(input_ids=ids, attention_mask=mask).logits[:, N if in_sequence else 0 :]
    return torch.cat([row[: len(text) - 1] for row, text in zip(logits, TEXTS, strict=True)])


def padded(lists: list[list[int]], fill: int) -> Tensor:
    return torch.tensor([row + [fill] * (max(map(len, lists)) - len(row)) for row in lists])


def peft_model(name: str, config: peft.PeftConfig) -> Any:
    _, model = bare(name)
    model.requires_grad_(False)
    return peft.get_peft_model(model, config).eval()


def flat(keys_values: Tensor) -> Tensor:
    """[L, 2, heads, n, d] in PEFT's order [n, L * 2 * heads * d]."""
    return keys_values.permute(3, 0, 1, 2, 4).reshape(keys_values.shape[3], -1)


def prompt_oracle(name: str, method: TunedMethod) -> tuple[Any, dict[str, tuple[str, Callable[[Tensor], Tensor]]]]:
    """PEFT's model with our numbers, and which of its parameters holds which of ours (and how)."""
    task = "SEQ_2_SEQ_LM" if name == "t5" else "CAUSAL_LM"
    parts: dict[str, tuple[str, Callable[[Tensor], Tensor]]]
    if "makers.decoder.inputs" in dict(method.named_parameters()):
        config: peft.PeftConfig = peft.PrefixTuningConfig(
            task_type=task, num_virtual_tokens=N, prefix_projection=True, encoder_hidden_size=6
        )
        parts = {"makers.decoder.inputs": ("embedding.weight", lambda t: t)}
        for layer in (0, 2):
            for part in ("weight", "bias"):
                parts[f"makers.decoder.mlp.{layer}.{part}"] = (f"transform.{layer}.{part}", lambda t: t)
    elif method.slots == "none":
        config = peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=N)
        parts = {"makers.decoder.keys_values": ("embedding.weight", flat)}
    elif "inputs" in dict(method.named_parameters()):
        config = peft.PromptEncoderConfig(
            task_type=task, num_virtual_tokens=N, encoder_reparameterization_type="LSTM", encoder_hidden_size=H // 2
        )
        parts = {"inputs": ("embedding.weight", lambda t: t)}
        for key, _ in method.named_parameters():
            if key != "inputs":
                there = key.removeprefix("encoder.").replace("mlp.", "mlp_head.").replace("lstm.", "lstm_head.")
                parts[key] = (there, lambda t: t)
    else:
        config = peft.PromptTuningConfig(task_type=task, num_virtual_tokens=N, num_transformer_submodules=1)
        parts = {"embeddings": ("embedding.weight", lambda t: t)}
    model = peft_model(name, config)
    encoder = dict(model.prompt_encoder["default"].named_parameters())
    with torch.no_grad():
        for key, (there, form) in parts.items():
            encoder[there].copy_(form(dict(method.named_parameters())[key]))
    return model, parts


@pytest.mark.parametrize(("name", "config"), [*CAUSAL, ("t5", "prompt-tuning")])
def test_logits_and_gradients(name: str, config: str) -> None:
    base = host(name)
    method = built(base, CONFIGS[config])
    model, parts = prompt_oracle(name, method)
    logits, labels = ours(base, method)
    expected = theirs(model, name, in_sequence=method.slots == "front")
    close(logits, expected, 1e-5)
    functional.cross_entropy(logits, labels).backward()
    functional.cross_entropy(expected, labels).backward()
    encoder = dict(model.prompt_encoder["default"].named_parameters())
    for key, (there, form) in parts.items():
        mine = dict(method.named_parameters())[key].grad
        assert mine is not None
        assert float(mine.abs().max()) > 0
        close(form(mine), encoder[there].grad, 1e-5)


def test_hidden_states_of_an_encoder_with_prompt_tuning() -> None:
    base = host("bert")
    method = built(base, CONFIGS["prompt-tuning"])
    _, model = bare("bert")
    config = peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=N)
    wrapped = peft.get_peft_model(model.bert, config).eval()
    with torch.no_grad():
        wrapped.prompt_encoder["default"].embedding.weight.copy_(method.prompt().embeddings)
        theirs = wrapped(input_ids=padded(TEXTS, 0), attention_mask=padded([[1] * len(t) for t in TEXTS], 0))
    hidden = run(base, [Row(FRONT + text, None, 0) for text in TEXTS], [method.prompt()], hidden=True).hidden
    assert hidden is not None
    for mine, other, text in zip(hidden, theirs.last_hidden_state, TEXTS, strict=True):
        close(mine[: N + len(text)], other[: N + len(text)], 1e-5)


def artifact(folder: Path, base: BaseHost, prompt: Prompt, config: dict[str, Any], **facts: Any) -> Path:
    """An artifact's folder, as training leaves it."""
    recipe = {"task": {"type": "generate", "input": facts.pop("template", "{source}")}, "method": config}
    spec = {"id": "somewhere/base", "revision": "sha256:0", "fingerprint": "sha256:0", "kind": base.kind}
    folder.mkdir()
    save_prompt(folder, prompt.detach(), facts.pop("head", {}))
    whole = {"method": config["type"], "base": spec, "task": "generate", "recipe": recipe} | facts
    (folder / "artifact.json").write_text(json.dumps(whole))
    return folder


@pytest.mark.parametrize(("name", "config"), [*CAUSAL, ("t5", "prompt-tuning"), ("t5", "p-tuning")])
def test_an_exported_artifact_gives_the_same_logits_in_peft(name: str, config: str, tmp_path: Path) -> None:
    base = host(name)
    method = built(base, CONFIGS[config])
    folder = artifact(tmp_path / "artifact", base, method.prompt(), CONFIGS[config])
    assert main([str(folder), str(tmp_path / "out"), "--format", "peft", "--base-path", "here"]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    model = peft.PeftModel.from_pretrained(bare(name)[1], tmp_path / "out").eval()
    assert model.active_peft_config.base_model_name_or_path == "here"
    logits, _ = ours(base, method)
    with torch.no_grad():
        close(logits, theirs(model, name, in_sequence=method.slots == "front"), 1e-5)


def test_the_embedding_only_ablation_is_prompt_tuning_there(tmp_path: Path) -> None:
    base = host("gpt2")
    method = built(base, EMBEDDING_ONLY)
    folder = artifact(tmp_path / "a", base, method.prompt(), EMBEDDING_ONLY)
    assert main([str(folder), str(tmp_path / "out")]) == 0
    model = peft.PeftModel.from_pretrained(bare("gpt2")[1], tmp_path / "out").eval()
    assert model.active_peft_config.peft_type == "PROMPT_TUNING"
    with torch.no_grad():
        close(ours(base, method)[0], theirs(model, "gpt2", in_sequence=True), 1e-5)


def test_a_prompt_at_the_start_of_the_template_is_in_front(tmp_path: Path) -> None:
    base = host("gpt2")
    method = built(base, {"type": "p-tuning"}, length=N)
    folder = artifact(tmp_path / "a", base, method.prompt(), {"type": "p-tuning"}, template="[P:1][P:3] {text} is")
    assert main([str(folder), str(tmp_path / "out")]) == 0


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "infix": ("gpt2", {"type": "p-tuning"}, {"template": "[P:2] {text} [P:2]"}, "in front of the text only"),
    "seen by some": (
        "gpt2",
        {"type": "prefix-tuning", "placement": "infix"},
        {"slots": "infix"},
        "seen by those after",
    ),
    "behind the opening": ("gpt2", CONFIGS["prompt-tuning"], {"slots": "after-bos"}, "in front of the text only"),
    "encoder": ("t5", CONFIGS["prefix-tuning"], {}, "no prefix into cross and encoder attention"),
    "masked": ("bert", CONFIGS["prompt-tuning"], {}, "no task for masked bases"),
    "deep": ("bert", CONFIGS["p-tuning-v2"], {}, "no task for masked bases"),
    "head": ("gpt2", CONFIGS["prompt-tuning"], {"head": {"weight": torch.zeros(2, H)}}, "classification heads"),
    "nothing": ("gpt2", {"type": "head"}, {}, "no virtual tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_peft_cannot_hold_is_refused(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, config, facts, reason = REFUSED[case]
    base = host(name)
    folder = artifact(tmp_path / "artifact", base, built(base, config).prompt(), config, **copy.copy(facts))
    assert main([str(folder), str(tmp_path / "out")]) == BadInput.exit_code
    assert reason in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["artifact"]


def test_folders_that_are_no_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path / "out")]) == NotFound.exit_code
    for text in ("{", "[]", '{"method": "prompt-tuning"}'):
        (tmp_path / "artifact.json").write_text(text)
        assert main([str(tmp_path), str(tmp_path / "out")]) == BadInput.exit_code
    assert "artifact.json" in capsys.readouterr().err


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = host("gpt2")
    folder = artifact(tmp_path / "a", base, built(base, P_TUNING).prompt(), P_TUNING)
    (tmp_path / "out").mkdir()
    assert main([str(folder), str(tmp_path / "out")]) == BadInput.exit_code
    assert "already exists" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
