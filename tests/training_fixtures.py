"""Tiny bases with real tokenizers on disk, dataset versions, and jobs ready to run here or under a launcher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from orchestrator.data.store import SplitWriter
from orchestrator.events import read_events
from orchestrator.jobspec import BaseSpec, DatasetSpec, JobSpec, RunSpec
from orchestrator.paths import JobPaths, RunPaths, read_json
from orchestrator.recipe.schema import JobRecipe
from orchestrator.training.objectives.asking import Asked, answer
from orchestrator.training.run import main
from orchestrator.weights import fingerprint

COLOURS = ("red", "green", "blue", "black", "white")
THINGS = ("cat", "house", "river", "stone", "bird", "tree")
KINDS = {"gpt2": "causal", "t5": "seq2seq", "bert": "masked"}


def make_base(folder: Path, name: str) -> Path:
    """A random model of two layers with a word-level tokenizer of its own: gpt2, t5 or bert."""
    tokenizer = make_tokenizer(name)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": len(tokenizer)}
    torch.manual_seed(7)
    if name == "gpt2":
        model: Any = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **ids))
    elif name == "t5":
        shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
        model = T5ForConditionalGeneration(T5Config(**shape, **ids))
    else:
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        model = BertForMaskedLM(BertConfig(max_position_embeddings=64, **shape, **ids))
    with torch.no_grad():  # large enough that every input matters
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_dataset(folder: Path, *, train: int = 40, validation: int = 10) -> Path:
    """Rows with a text of ragged length, a target and a label that depends on the text."""
    folder.mkdir(parents=True)
    for split, count in {"train": train, "validation": validation}.items():
        writer = SplitWriter(folder / f"{split}.arrow", ["text", "target", "label"])
        for i in range(count):
            words = [f"{COLOURS[(i + j) % 5]} {THINGS[(i * 3 + j) % 6]}" for j in range(1 + i % 4)]
            writer.add([" and ".join(words), THINGS[i % 6], "warm" if COLOURS[i % 5] == "red" else "cold"])
        writer.close()
    return folder


def recipe(method: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A small recipe; `changes` by dotted key with `__` for the dot."""
    made: dict[str, Any] = {
        "name": "tiny",
        "base": "tiny",
        "dataset": "tiny",
        "task": {"type": "generate", "input": "the {text}", "target": "{target}", "max_new_tokens": 4},
        "method": method,
        "train": {"steps": 6, "batch_size": 4, "lr": 0.05, "checkpoint_every": 2, "eval_batch_size": 4},
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        part = made
        for name in path:
            part = part[name]
        part[last] = value
    return made


@dataclass(frozen=True)
class MadeRun:
    """A run's folder and those of its jobs."""

    root: Path
    jobs: list[JobPaths]

    @property
    def folder(self) -> RunPaths:
        return RunPaths(self.root / "run")

    def train(self) -> int:
        """In this process."""
        return main([str(self.folder.root)])

    def events(self, job: int = 0, kind: str | None = None) -> list[dict[str, Any]]:
        found, _ = read_events(self.jobs[job].events)
        return [event for event in found if kind in (None, event["kind"])]

    def losses(self, job: int = 0) -> dict[int, float]:
        """Step -> training loss, the last report of each step."""
        metrics = [e for e in self.events(job, "metric") if e["split"] == "train"]
        return {e["step"]: e["values"]["loss"] for e in metrics}

    def artifact(self, job: int = 0, attempt: int = 1) -> dict[str, Any]:
        return dict(read_json(self.jobs[job].artifact(attempt) / "artifact.json"))

    def prompt_bytes(self, job: int = 0, attempt: int = 1) -> bytes:
        return (self.jobs[job].artifact(attempt) / "prompt.safetensors").read_bytes()


def make_run(
    root: Path,
    recipes: Sequence[dict[str, Any]],
    *,
    base: Path,
    dataset: Path,
    kind: str = "causal",
    processes: int = 1,
    zero: int | None = None,
    port: int = 0,
    attempt: int = 1,
) -> MadeRun:
    """Write run.json and each job's job.json as a worker would."""
    spec = BaseSpec("tiny", str(base), "local", fingerprint(base), kind)
    jobs = []
    for number, raw in enumerate(recipes, start=1):
        made = JobRecipe.model_validate(raw)
        paths = JobPaths(root / "jobs" / str(number))
        data = DatasetSpec("tiny", 1, "sha256:" + "0" * 64, str(dataset))
        JobSpec(number, attempt, made.name, made.seed, made.model_dump(mode="json"), spec, data, str(paths.root)).write(
            paths.spec
        )
        jobs.append(paths)
    run = MadeRun(root, jobs)
    RunSpec(1, "token", [str(j.root) for j in jobs], processes, "cpu", [], zero, port=port).write(run.folder.spec)
    return run


def said(
    host: Any, objective: Any, prompt: Any, head: Any, rows: Sequence[dict[str, str]], *, tuned: bool
) -> list[str]:
    """The answers to one job's rows, as many in a forward as there are rows."""
    (answers,) = answer(host, [Asked(objective, prompt, head, rows, tuned)], most=len(rows))
    return [one.text for one in answers]


def make_tokenizer(name: str) -> PreTrainedTokenizerFast:
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    names = [*special.values(), "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    words = [*COLOURS, *THINGS, "and", "the", "is", "warm", "cold", "a"]
    tokenizer.train_from_iterator(words * 2, trainers.WordLevelTrainer(special_tokens=names))
    if name == "bert":
        ids = [("[CLS]", names.index("[CLS]")), ("[SEP]", names.index("[SEP]"))]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
        special |= {"mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    if name == "t5":
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
