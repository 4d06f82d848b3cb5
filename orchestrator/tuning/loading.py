"""A trained artifact on its base in one call, without any registry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.companions import refuse_changes
from orchestrator.errors import BadInput
from orchestrator.manifest import manifest_faults
from orchestrator.paths import ArtifactPaths, read_json
from orchestrator.tuning.artifact import load_prompt
from orchestrator.tuning.forward import generate
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.own_weights import load_brought, put_in
from orchestrator.tuning.prompt import Prompt
from orchestrator.tuning.rows import NO_LABEL, Row, RowBatch
from orchestrator.weights import fingerprint


@dataclass(frozen=True)
class Loaded:
    """An artifact on its base."""

    host: BaseHost
    prompt: Prompt
    head: dict[str, Tensor]  #: of a classification head; empty without one
    facts: dict[str, Any]  #: artifact.json: recipe, base, dataset, metrics, versions

    def row(self, ids: Sequence[int], labels: Sequence[int] | None = None) -> Row:
        """A row with the virtual tokens in front, where that is their place. Raises BadInput where it is not.

        `labels` as of `tuning.Row`, for `ids` alone.
        """
        slots = self.facts["slots"]
        if slots not in {"front", "none"}:
            raise BadInput(
                f"this prompt's virtual tokens are placed {slots}, not in front",
                hint="write token j of the prompt as the id -(j+1) where it belongs, and make a `Row` yourself",
            )
        front = [-(j + 1) for j in range(self.prompt.slots)] if slots == "front" else []
        aligned = self.host.kind != "seq2seq"
        wanted = None if labels is None else [*([NO_LABEL] * len(front) if aligned else []), *labels]
        return Row([*front, *ids], wanted, 0)

    @torch.no_grad()
    def write(self, texts: Sequence[str], *, max_new_tokens: int = 64) -> list[str]:
        """What the base writes after each text (with an encoder-decoder base: for it), with the prompt in front."""
        tokenizer = self.host.tokenizer
        assert tokenizer is not None
        rows = [self.row(tokenizer(text)["input_ids"]) for text in texts]
        batch = RowBatch.collate(rows, pad_id=self.host.pad_id)
        found = generate(self.host, batch, [self.prompt], max_new_tokens=max_new_tokens)
        return [str(text) for text in tokenizer.batch_decode(found, skip_special_tokens=True)]


def load(
    artifact: Path | str, base: Path | str, *, dtype: str | None = None, device: str | torch.device = "cpu"
) -> Loaded:
    """`artifact`: a folder as `ptq artifact show` names it; `base`: the folder of its base.

    `dtype`: fp32, bf16 or fp16; default: as it was trained. Raises BadInput when the artifact is damaged or the base's
    weights, tokenizer or configuration are not those it was trained on.
    """
    folder, weights = Path(artifact), Path(base)
    faults = manifest_faults(folder)
    if faults:
        raise BadInput(f"the artifact is damaged: {faults[0]}", where=str(folder))
    facts = dict(read_json(ArtifactPaths(folder).facts))
    if fingerprint(weights) != facts["base"]["fingerprint"]:
        raise BadInput("these are not the weights that the artifact was trained on", where=str(weights))
    refuse_changes(facts["base"].get("companions") or {}, weights, "the artifact was trained")
    precision = dtype or str(facts["recipe"]["base"]["dtype"])
    host = BaseHost.load(weights, kind=facts["base"]["kind"], dtype=precision, device=device)
    put_in(host, load_brought(folder, host))
    prompt, head = load_prompt(folder)
    return Loaded(host, prompt, head, facts)
