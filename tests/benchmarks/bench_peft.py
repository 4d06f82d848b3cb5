"""Train one prompt as a user of PEFT and accelerate does: tokenise, pad by batch, the model's own loss.

    python -m tests.benchmarks.bench_peft SPEC.json

Prints one JSON line: {"losses": […], "at": […], "bytes": …}: seconds to each step's end, and the most memory held.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    get_linear_schedule_with_warmup,
)

from tests.benchmarks.bench_memory import peak_bytes


def main(spec: dict[str, Any]) -> None:
    torch.set_num_threads(spec["threads"])
    accelerator = Accelerator(cpu=spec["device"] == "cpu")
    tokenizer = AutoTokenizer.from_pretrained(spec["base"])
    architecture, task, collate = KINDS[spec["kind"]]
    base = architecture.from_pretrained(spec["base"], dtype="auto")
    start = torch.from_numpy(np.load(spec["start"]))
    kind, more = PromptTuningConfig, {"num_transformer_submodules": 1}  # an encoder-decoder's prompt is the encoder's
    if spec["method"] == "prefix-tuning":
        kind, start = PrefixTuningConfig, start.permute(3, 0, 1, 2, 4).flatten(1)  # [n, L * 2 * kv_heads * head_dim]
        more = {}
    model = get_peft_model(base, kind(task_type=task, num_virtual_tokens=len(start), **more))
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.copy_(start)
    model.base_model.eval()  # ptq leaves the frozen base's dropout off; so does this, or the losses could not agree
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=spec["lr"], weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, spec["steps"])
    rows = [collate.row(tokenizer, json.loads(line)) for line in Path(spec["rows"]).read_text().splitlines()]
    front = len(start) if kind is PromptTuningConfig else 0
    loader = DataLoader(rows, batch_sampler=spec["order"], collate_fn=lambda batch: collate(batch, tokenizer, front))
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    losses, clock = [], _Clock(accelerator.device)
    for batch in loader:
        loss = model(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        clock.mark()
    accelerator.unwrap_model(model).save_pretrained(spec["output"])
    print(json.dumps({"losses": [float(loss) for loss in losses], "at": clock.seconds(), "bytes": peak_bytes()}))


class _Clock:
    """When each step was over: on a GPU, which works behind what it is told, by its own events."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[Any] = []
        self.mark()

    def mark(self) -> None:
        if not self._on_gpu:
            self._marks.append(time.time())
            return
        self._marks.append(torch.cuda.Event(enable_timing=True))
        self._marks[-1].record()

    def seconds(self) -> list[float]:
        first, *others = self._marks
        if not self._on_gpu:
            return [mark - first for mark in others]
        torch.cuda.synchronize()
        return [first.elapsed_time(mark) / 1000 for mark in others]


Tokenised = tuple[list[int], list[int]]  #: ids, labels


class _Causal:
    """Labels stand for the same positions as the ids; PEFT adds what its virtual tokens need."""

    @staticmethod
    def row(tokenizer: Any, row: dict[str, str]) -> Tokenised:
        ids = [*tokenizer(row["text"])["input_ids"], tokenizer.bos_token_id]
        target = [*tokenizer(row["target"])["input_ids"], tokenizer.eos_token_id]
        return ids + target, [-100] * len(ids) + target

    def __call__(self, batch: list[Tokenised], tokenizer: Any, front: int) -> dict[str, torch.Tensor]:
        return _padded([ids for ids, _ in batch], [labels for _, labels in batch], tokenizer)


class _Seq2Seq(_Causal):
    """Labels are the decoder's."""

    @staticmethod
    def row(tokenizer: Any, row: dict[str, str]) -> Tokenised:
        return tokenizer(row["text"])["input_ids"], [*tokenizer(row["target"])["input_ids"], tokenizer.eos_token_id]


class _Masked:
    """PEFT has no masked language modelling of its own: labels begin with those of the virtual tokens."""

    @staticmethod
    def row(tokenizer: Any, row: dict[str, str]) -> Tokenised:
        ids = [*tokenizer(row["text"])["input_ids"], tokenizer.mask_token_id]
        return ids, [-100] * (len(ids) - 1) + tokenizer(row["target"])["input_ids"]

    def __call__(self, batch: list[Tokenised], tokenizer: Any, front: int) -> dict[str, torch.Tensor]:
        return _padded([ids for ids, _ in batch], [[-100] * front + labels for _, labels in batch], tokenizer)


KINDS: dict[str, tuple[Any, str, Any]] = {
    "causal": (AutoModelForCausalLM, "CAUSAL_LM", _Causal()),
    "seq2seq": (AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM", _Seq2Seq()),
    "masked": (AutoModelForMaskedLM, "FEATURE_EXTRACTION", _Masked()),
}


def _padded(ids: list[list[int]], labels: list[list[int]], tokenizer: Any) -> dict[str, torch.Tensor]:
    def filled(rows: list[list[int]], fill: int) -> torch.Tensor:
        longest = max(map(len, rows))
        return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])

    return {
        "input_ids": filled(ids, tokenizer.pad_token_id),
        "attention_mask": filled([[1] * len(row) for row in ids], 0),
        "labels": filled(labels, -100),
    }


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
