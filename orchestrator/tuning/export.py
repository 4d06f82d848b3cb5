"""Artifacts in other tools' formats: `python -m orchestrator.tuning.export ARTIFACT_FOLDER OUT --format peft`.

PEFT holds virtual tokens in front of the text (prompt tuning, P-tuning) and prefixes of decoder self-attention, both
for writing text. Everything else is refused with the reason.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from orchestrator.errors import BadInput, NotFound, PtqError
from orchestrator.paths import folder_written_atomically, read_json, write_json
from orchestrator.tasks.template import Virtual, parse
from orchestrator.tuning.artifact import load_prompt
from orchestrator.tuning.prompt import Prompt

FACTS = "artifact.json"

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
    parser.add_argument("--format", choices=["peft"], default="peft")
    parser.add_argument("--base-path", help="where the other tool finds the base; default: the artifact's own base id")
    options = parser.parse_args(argv)
    try:
        export_peft(options.artifact, options.out, base_path=options.base_path)
    except PtqError as error:
        print(f"ptq: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.out}: load it with peft.PeftModel.from_pretrained(base, {str(options.out)!r})", file=sys.stderr)
    return 0


def export_peft(artifact: Path, out: Path, *, base_path: str | None = None) -> None:
    """Write adapter_config.json and adapter_model.safetensors into `out`, all at once or not at all.

    Raises BadInput where PEFT has no place for what was trained, and where `out` exists.
    """
    facts = _facts(artifact)
    prompt, head = load_prompt(artifact)
    reason = _why_not(facts, prompt, bool(head))
    if reason:
        raise BadInput(f"PEFT cannot hold this prompt: {reason}", where=str(artifact))
    if out.exists():
        raise BadInput("already exists", where=str(out), hint="name a folder that does not exist yet")
    config, embeddings = _adapter(facts, prompt)
    config["base_model_name_or_path"] = base_path or facts["base"]["id"]
    with folder_written_atomically(out) as folder:
        save_file({"prompt_embeddings": embeddings}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(folder / "adapter_config.json", config)


def _facts(artifact: Path) -> dict[str, Any]:
    path = artifact / FACTS
    if not path.is_file():
        raise NotFound(f"there is no {FACTS} in this folder", where=str(artifact))
    try:
        facts = read_json(path)
        wanted = facts["method"], facts["base"]["id"], facts["base"]["kind"], facts["recipe"]["task"]["input"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"not an artifact's {FACTS}: {error!r}", where=str(path)) from error
    if not all(isinstance(value, str) for value in wanted):
        raise BadInput(f"not an artifact's {FACTS}", where=str(path))
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


if __name__ == "__main__":
    sys.exit(main())
