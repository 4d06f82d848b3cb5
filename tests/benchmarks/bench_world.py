"""What the speed benchmark trains on: random bases of three sizes, rows of random words, and the same jobs for both.

Rows have half to one and a half times `tokens` tokens, a quarter of them the target; every base has its own vocabulary
of whole words, so a word is a token and both programs read the same rows.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from orchestrator.data.store import SplitWriter
from orchestrator.jobspec import BaseSpec, DatasetSpec, JobSpec, RunSpec
from orchestrator.paths import JobPaths, RunPaths
from orchestrator.recipe.schema import JobRecipe
from orchestrator.training.order import batch_rows
from orchestrator.tuning import Prompt, save_prompt
from orchestrator.weights import fingerprint
from tests.benchmarks import bench_others as others
from tests.benchmarks.bench_others import MASK, OTHERS, kind_of, task

#: name -> (V, H, L, heads); GPT-2's shape: 12 H^2 numbers a layer, V H in the tied embedding
BASES = {"1M": (2048, 128, 4, 4), "22M": (30522, 384, 6, 12), "124M": (50257, 768, 12, 12)}
#: name -> (V, H, L, heads, key heads, width of the perceptron), Llama's shape, for a GPU
GPU_BASES = {
    "0.5B": (128256, 896, 24, 14, 2, 4864),
    "1.5B": (128256, 1536, 28, 12, 2, 8960),
    "7B": (32000, 4096, 32, 32, 8, 14336),
}
ROWS = 256
FIRST = 4  #: number of the first word; before it stand marks
CONTEXT = 1024


@dataclass(frozen=True)
class Shape:
    """One line of the table."""

    base: str
    length: int  #: n, virtual tokens
    tokens: int  #: of a row on average
    jobs: int = 1
    steps: int = 20
    batch: int = 8
    dtype: str = "fp32"
    in_turn: int = 0  #: of the jobs, how many PEFT really runs one after another; 0: all
    method: str = "prompt-tuning"  #: or prefix-tuning, of keys and values without a network
    beside: bool = True  #: several jobs: PEFT side by side too

    def __str__(self) -> str:
        return f"{self.base}, {self.method}, n {self.length}, {self.tokens} tokens, k {self.jobs}"


class World:
    """Makes bases, rows and jobs in a folder, each once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def base(self, name: str, dtype: str = "fp32") -> Path:
        folder = self.root / f"base-{name}-{dtype}"
        if not folder.exists():
            torch.manual_seed(1)
            model = _model(name, {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
            model.save_pretrained(folder)
            _tokenizer(model.config.vocab_size, kind_of(name)).save_pretrained(folder)
        return folder

    def rows(self, base: str, tokens: int) -> Path:
        """A dataset version, and the same rows as JSON lines."""
        folder = self.root / f"rows-{base}-{tokens}"
        if not folder.exists():
            folder.mkdir(parents=True)
            draw = random.Random(tokens)
            made = [_row(draw, tokens, sizes_of(base)[0]) for _ in range(ROWS)]
            if kind_of(base) == "masked":  # one word is to be filled in
                made = [(f"{text} {target}".rpartition(" ")[0], target.rpartition(" ")[2]) for text, target in made]
            writer = SplitWriter(folder / "train.arrow", ["text", "target"])
            for row in made:
                writer.add(list(row))
            writer.close()
            lines = [json.dumps({"text": text, "target": target}) for text, target in made]
            (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return folder

    def start(self, shape: Shape, job: int) -> Path:
        """What job number `job` starts from: [n, H], or [L, 2, kv_heads, n, head_dim]."""
        path = self.root / f"start-{shape.method}-{shape.base}-{shape.length}-{job}.npy"
        if not path.exists():
            sizes = sizes_of(shape.base)
            width, layers, heads, key_heads = *sizes[1:4], sizes[4] if len(sizes) > 4 else sizes[3]
            deep = (layers, 2, key_heads, shape.length, width // heads)
            wanted = (shape.length, width) if shape.method == "prompt-tuning" else deep
            np.save(path, np.random.default_rng(job).normal(0, 0.1, wanted).astype(np.float32))
        return path

    def method(self, shape: Shape, job: int) -> dict[str, Any]:
        """The `method:` of a recipe."""
        start = self.start(shape, job)
        named: dict[str, Any] = {"type": shape.method, "length": shape.length}
        if shape.method == "prompt-tuning":
            return named | {"init": {"type": "file", "path": str(start)}}
        folder = start.with_suffix("")
        if not folder.exists():
            folder.mkdir()
            where = "encoder" if kind_of(shape.base) == "masked" else "decoder"
            save_prompt(folder, Prompt(keys_values={where: torch.from_numpy(np.load(start))}), {})
        return named | {"init": {"type": "prompt", "path": str(folder)}}

    def recipe(self, shape: Shape, job: int) -> dict[str, Any]:
        """Jobs of one group differ in seed, rate and start."""
        return {
            "name": f"bench-{job}",
            "base": {"model": shape.base, "dtype": shape.dtype},
            "dataset": "bench",
            "task": task(kind_of(shape.base), shape.tokens),
            "method": self.method(shape, job),
            "train": {
                "steps": shape.steps,
                "batch_size": shape.batch,
                "lr": 0.05 / (1 + job % 4),
                "seeds": [job + 1],
                "checkpoint_every": 10_000,
            },
        }

    def ptq_run(self, folder: Path, shape: Shape, *, threads: int, device: str) -> RunPaths:
        """A run's folder as a worker writes it, with all jobs of the shape."""
        base, data = self.base(shape.base, shape.dtype), self.rows(shape.base, shape.tokens)
        spec = BaseSpec(shape.base, str(base), "local", fingerprint(base), kind_of(shape.base))
        version = DatasetSpec("bench", 1, "sha256:" + "0" * 64, str(data))
        jobs = []
        for number in range(shape.jobs):
            recipe = JobRecipe.model_validate(self.recipe(shape, number))
            paths = JobPaths(folder / "jobs" / str(number + 1))
            raw = recipe.model_dump(mode="json")
            JobSpec(number + 1, 1, recipe.name, recipe.seed, raw, spec, version, str(paths.root)).write(paths.spec)
            jobs.append(str(paths.root))
        run = RunPaths(folder / "run")
        RunSpec(1, "bench", jobs, 1, device, [], None, threads=threads).write(run.spec)
        return run

    def peft_spec(self, folder: Path, shape: Shape, job: int, *, threads: int, device: str) -> Path:
        """What `bench_peft` is told about one job: the same base, rows, order, start and settings."""
        train = self.recipe(shape, job)["train"]
        order = [batch_rows(s, seed=job + 1, rows=ROWS, batch_size=shape.batch) for s in range(shape.steps)]
        path = folder / f"peft-{job}.json"
        told = {
            "base": str(self.base(shape.base, shape.dtype)),
            "rows": str(self.rows(shape.base, shape.tokens) / "train.jsonl"),
            "kind": kind_of(shape.base),
            "method": shape.method,
            "start": str(self.start(shape, job)),
            "order": order,
            "lr": train["lr"],
            "steps": shape.steps,
            "threads": threads,
            "device": device,
            "output": str(folder / f"peft-{job}"),
        }
        path.write_text(json.dumps(told), encoding="utf-8")
        return path


def sizes_of(base: str) -> tuple[int, ...]:
    """V, H, L, heads, and for a GPU's bases key heads and the width of the perceptron."""
    return OTHERS[base][1:] if base in OTHERS else BASES.get(base) or GPU_BASES[base]


def _row(draw: random.Random, tokens: int, vocabulary: int) -> tuple[str, str]:
    total = draw.randint(tokens // 2, tokens + tokens // 2) - 2  # with the separator and the end mark
    target = max(1, total // 4)
    words = [f"w{draw.randrange(FIRST, vocabulary)}" for _ in range(total)]
    return " ".join(words[target:]), " ".join(words[:target])


def _model(name: str, dtype: torch.dtype) -> Any:
    """Random weights, made in the precision in which they are saved: 7B in fp32 would take 28 GB."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return _made(name)
    finally:
        torch.set_default_dtype(before)


def _made(name: str) -> Any:
    if name in OTHERS:
        return others.model(name, CONTEXT)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if name in BASES:
        vocabulary, width, layers, heads = BASES[name]
        shape = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": CONTEXT}
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **shape, **ids))
    vocabulary, width, layers, heads, key_heads, inner = GPU_BASES[name]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=inner,
        max_position_embeddings=2 * CONTEXT,
        **ids,
    )
    return LlamaForCausalLM(config)


def _tokenizer(vocabulary: int, kind: str) -> PreTrainedTokenizerFast:
    mask = MASK if kind == "masked" else f"w{FIRST - 1}"
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, mask: FIRST - 1} | {f"w{i}": i for i in range(FIRST, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    if kind == "masked":
        names["mask_token"] = MASK
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
