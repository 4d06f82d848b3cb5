"""Artifacts in other tools' formats: `python -m orchestrator.tuning.export ARTIFACT_FOLDER OUT --format peft`.

peft    virtual tokens in front of the text (prompt tuning, P-tuning) and prefixes of decoder self-attention, both for
        writing text
npy     one array [n, H] of input embeddings in front of the text, as google-research/prompt-tuning stores prompts
vllm    the same as a tensor, with a program that joins it to a text as the `prompt_embeds` that vLLM takes

Everything else is refused with the reason.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from orchestrator.errors import BadInput, NotFound, PtqError
from orchestrator.paths import ArtifactPaths, folder_written_atomically, read_json, write_atomic, write_json
from orchestrator.tasks.template import Virtual, parse
from orchestrator.tuning.artifact import load_prompt
from orchestrator.tuning.methods.lora import CONFIG, KEPT, WEIGHTS
from orchestrator.tuning.prompt import Prompt

_TASK_TYPES = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}
_PEFT_TYPES = {
    "prompt-tuning": "PROMPT_TUNING",
    "p-tuning": "P_TUNING",
    "prefix-tuning": "PREFIX_TUNING",
    "p-tuning-v2": "PREFIX_TUNING",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.tuning.export", description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path, help="folder with artifact.json and prompt.safetensors")
    parser.add_argument("out", type=Path, help="folder to be made")
    parser.add_argument("--format", choices=list(_WRITERS), default="peft")
    parser.add_argument("--base-path", help="where the other tool finds the base; default: the artifact's own base id")
    options = parser.parse_args(argv)
    try:
        _WRITERS[options.format](options.artifact, options.out, base_path=options.base_path)
    except PtqError as error:
        print(f"ptq: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.out}: {_HINTS[options.format].format(out=str(options.out))}", file=sys.stderr)
    return 0


def export_peft(artifact: Path, out: Path, *, base_path: str | None = None) -> None:
    """Write adapter_config.json and adapter_model.safetensors into `out`, all at once or not at all.

    Raises BadInput where PEFT has no place for what was trained, and where `out` exists.
    """
    facts = _facts(artifact)
    prompt, head = load_prompt(artifact)
    _refuse_existing(out)
    if (artifact / KEPT / CONFIG).is_file() and not head:
        _give_back(artifact / KEPT, out, base_path)
        return
    reason = _why_not(facts, prompt, bool(head))
    if reason:
        raise BadInput(f"PEFT cannot hold this prompt: {reason}", where=str(artifact))
    config, embeddings = _adapter(facts, prompt)
    config["base_model_name_or_path"] = base_path or facts["base"]["id"]
    with folder_written_atomically(out) as folder:
        save_file({"prompt_embeddings": embeddings}, folder / WEIGHTS, metadata={"format": "pt"})
        write_json(folder / CONFIG, config)


def export_npy(artifact: Path, out: Path, *, base_path: str | None = None) -> None:
    """Write the file `out`: [n, H] fp32. Raises BadInput where one array cannot hold what was trained."""
    del base_path  # an array says nothing of its base
    embeddings = _in_front_only("an array of input embeddings", artifact)
    _refuse_existing(out)
    if out.suffix != ".npy":
        raise BadInput("not the name of an array", where=str(out), hint="name a file that ends in .npy")
    buffer = BytesIO()
    np.save(buffer, embeddings.numpy(), allow_pickle=False)
    write_atomic(out, buffer.getvalue())


def export_vllm(artifact: Path, out: Path, *, base_path: str | None = None) -> None:
    """Write the folder `out`: prompt_embeds.pt [n, H] and a program that puts it in front of a text's embeddings."""
    facts = _facts(artifact)
    if facts["base"]["kind"] != "causal":
        raise BadInput(
            f"vLLM's prompt_embeds cannot hold this prompt: it takes them for causal bases only, this is a "
            f"{facts['base']['kind']} one",
            where=str(artifact),
        )
    embeddings = _in_front_only("vLLM's prompt_embeds", artifact)
    _refuse_existing(out)
    task = facts["recipe"]["task"]
    told = {
        "base": base_path or facts["base"]["id"],
        "fingerprint": facts["base"].get("fingerprint"),
        "virtual_tokens": embeddings.shape[0],
        "input": re.sub(r"\[P:\d+\]\s*", "", task["input"]),
        "separator": task.get("separator"),
    }
    with folder_written_atomically(out) as folder:
        torch.save(embeddings, folder / "prompt_embeds.pt")
        write_json(folder / "prompt.json", told)
        (folder / "join.py").write_text(_JOIN, encoding="utf-8")


def _in_front_only(what: str, artifact: Path) -> Tensor:
    """[n, H] fp32. Raises BadInput for a prompt that is more than input embeddings in front of the text."""
    facts = _facts(artifact)
    prompt, head = load_prompt(artifact)
    reason = None
    if prompt.keys_values:
        reason = "it has keys and values in the layers"
    elif prompt.embeddings is None:
        reason = f"`{facts['method']}` has no virtual tokens"
    elif head:
        reason = "it comes with a classification head"
    elif facts.get("slots") == "after-bos" or not _in_front(facts["recipe"]["task"]["input"]):
        reason = "its virtual tokens do not all stand in front of the text"
    if reason or prompt.embeddings is None:
        raise BadInput(f"{what} cannot hold this prompt: {reason}", where=str(artifact))
    return prompt.embeddings.detach().float().cpu().contiguous()


def _give_back(kept: Path, out: Path, base_path: str | None) -> None:
    """An adapter that came from PEFT, as it came but for the place of its base."""
    config = read_json(kept / CONFIG)
    if base_path is not None:
        config["base_model_name_or_path"] = base_path
    with folder_written_atomically(out) as folder:
        shutil.copyfile(kept / WEIGHTS, folder / WEIGHTS)
        write_json(folder / CONFIG, config)


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise BadInput("already exists", where=str(out), hint="choose a name that does not exist yet")


def _facts(artifact: Path) -> dict[str, Any]:
    paths = ArtifactPaths(artifact)
    path = paths.facts
    if not path.is_file():
        raise NotFound(f"there is no {path.name} in this folder", where=str(artifact))
    try:
        facts = read_json(path)
        wanted = facts["method"], facts["base"]["id"], facts["base"]["kind"], facts["recipe"]["task"]["input"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"not an artifact's {path.name}: {error!r}", where=str(path)) from error
    if not all(isinstance(value, str) for value in wanted):
        raise BadInput(f"not an artifact's {path.name}", where=str(path))
    if paths.base_weights.is_file():
        what = f"its job has trained the base's own weights ({paths.base_weights.name}), and a prompt alone lacks them"
        raise BadInput(f"nothing can be exported: {what}", where=str(artifact))
    return dict(facts)


def _why_not(facts: dict[str, Any], prompt: Prompt, has_head: bool) -> str | None:
    """What of this artifact PEFT has no place for."""
    kind = facts["base"]["kind"]
    if facts["method"] not in _PEFT_TYPES or prompt.length == 0:
        return f"`{facts['method']}` has no virtual tokens" if prompt.length == 0 else f"it has no `{facts['method']}`"
    if has_head:
        return "its classification heads have the names of one model class each, and sit on PEFT's own pooling"
    if kind not in _TASK_TYPES:
        return f"it has no task for {kind} bases"
    elsewhere = sorted(set(prompt.keys_values) - {"decoder"})
    if elsewhere:
        return f"it puts no prefix into {' and '.join(elsewhere)} attention"
    if facts.get("slots") == "infix":
        return "it shows a prefix to every token, an infix is seen by those after the input only"
    if facts.get("slots") == "after-bos" or not _in_front(facts["recipe"]["task"]["input"]):
        return "it places virtual tokens in front of the text only"
    return None


def _in_front(template: str) -> bool:
    """Whether the template's virtual tokens, if any, all stand before everything else, each once and in order."""
    virtual = [isinstance(part, Virtual) for part in parse(template).parts]
    return virtual == sorted(virtual, reverse=True)


def _adapter(facts: dict[str, Any], prompt: Prompt) -> tuple[dict[str, Any], Tensor]:
    """(adapter_config.json, its one tensor [n, width] fp32)."""
    kind = _PEFT_TYPES[facts["method"]]
    config: dict[str, Any] = {
        # Embeddings of prefix tuning: its embedding-only ablation, which is prompt tuning once it is folded.
        "peft_type": "PROMPT_TUNING" if prompt.embeddings is not None and kind == "PREFIX_TUNING" else kind,
        "task_type": _TASK_TYPES[facts["base"]["kind"]],
        "num_virtual_tokens": prompt.length,
        # PEFT's default of two for encoder-decoder bases would expect 2n rows and never use the second half.
        "num_transformer_submodules": 1,
        "inference_mode": True,
        "revision": _hub_revision(facts),
    }
    if prompt.embeddings is not None:
        return config, prompt.embeddings.float().contiguous()
    keys_values = prompt.keys_values["decoder"]
    layers, _, heads, length, width = keys_values.shape
    config |= {"num_layers": layers, "num_attention_heads": heads, "token_dim": heads * width}
    return config, keys_values.float().permute(3, 0, 1, 2, 4).reshape(length, -1).contiguous()


def _hub_revision(facts: dict[str, Any]) -> str | None:
    """The base's commit on the hub; None for a local base, whose revision is a fingerprint of ours."""
    revision = facts["base"].get("revision")
    return revision if isinstance(revision, str) and ":" not in revision else None


_WRITERS = {"peft": export_peft, "npy": export_npy, "vllm": export_vllm}
_HINTS = {
    "peft": "load it with peft.PeftModel.from_pretrained(base, {out!r})",
    "npy": "load it with numpy.load({out!r})",
    "vllm": "join.py makes prompt_embeds of a text; start vLLM with --enable-prompt-embeds",
}
_JOIN = '''"""Puts the trained prompt in front of a text, as the prompt_embeds that vLLM takes.

    from join import prompt_embeds
    llm = vllm.LLM(model=BASE, enable_prompt_embeds=True)
    llm.generate({"prompt_embeds": prompt_embeds("some text", BASE)})

Needs torch and transformers. What the recipe puts between the text and the answer is up to you: see prompt.json.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent


def prompt_embeds(text, base, model=None, tokenizer=None):
    """[virtual tokens + text tokens, width] for one text, in the base's own dtype."""
    model = model or AutoModelForCausalLM.from_pretrained(base)
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(base)
    prompt = torch.load(HERE / "prompt_embeds.pt", weights_only=True)
    ids = torch.tensor(tokenizer(text)["input_ids"])
    with torch.no_grad():
        words = model.get_input_embeddings()(ids)
    return torch.cat([prompt.to(words), words])
'''

if __name__ == "__main__":
    sys.exit(main())
