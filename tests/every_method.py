"""Jobs of every method and task that may share a run, for the proof that nobody notices the others.

What `isolation.mixed` leaves out: networks, tasks, heads, samplings and starts that few recipes name. `mixed` and this
together hold every method that may share; the others say why they may not (`scheduling.fusing.alone_because`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training_fixtures import COLOURS, THINGS, recipe

from orchestrator.data.store import SplitWriter

WORDS = {"type": "classify", "labels": {"warm": ["warm"], "cold": ["cold"]}}
LONG_WORDS = {"warm": ["warm", "red house"], "cold": ["black stone", "white river bird"]}
HEAD = {"type": "classify", "labels": ["warm", "cold"], "head": {"pooling": "mean", "dropout": 0.1}}
TAGS = {"type": "tag", "words": "text", "labels": ["O", "B-X", "I-X"], "head": {"dropout": 0.1}}
SPAN = {"type": "span", "input": "the {target}", "context": "{text}", "answers": "{last}", "max_input_tokens": 16}
OWN = {"type": "classify", "candidates": "{options}", "label": "{target}"}
DESIGN = {"type": "prompt-design", "shots": 2, "separator": " and "}
SHARED = {"type": "residual", "hidden": 8}
SPLITS = {"train": 40, "validation": 8}
EACH = {"type": "residual", "hidden": 4, "shared": False, "layer_norm": False}
PREFIX = {"type": "prefix-tuning", "length": 3, "dropout": 0.2}


def make_rows(folder: Path) -> Path:
    """A dataset version with all that the tasks below read; rows of ragged length."""
    folder.mkdir(parents=True)
    for split, count in SPLITS.items():
        rows = [_row(i) for i in range(count)]
        writer = SplitWriter(folder / f"{split}.arrow", list(rows[0]))
        for row in rows:
            writer.add(list(row.values()))
        writer.close()
    return folder


def every(kind: str) -> list[dict[str, Any]]:
    """The jobs on a base of this kind; the first one is long enough to be preempted and to go on elsewhere."""
    made = {"masked": _masked, "causal": _causal, "seq2seq": _seq2seq}[kind]()
    return [{**one, "name": f"job-{number}"} for number, one in enumerate(made)]


def as_json(number: int) -> str:
    """The row as a line of a file that `ptq dataset add` reads."""
    return json.dumps(_row(number))


def _row(number: int) -> dict[str, str]:
    words = " and ".join(f"{COLOURS[(number + j) % 5]} {THINGS[(number * 3 + j) % 6]}" for j in range(1 + number % 4))
    share = (1 + number % 7) / 10
    return {
        "text": words,
        "last": words.split()[-1],
        "target": THINGS[number % 6],
        "label": "warm" if number % 5 == 0 else "cold",
        "tags": " ".join("O" if w == "and" else "B-X" if w in COLOURS else "I-X" for w in words.split()),
        "options": json.dumps([THINGS[(number + j) % 6] for j in range(2 + number % 2)]),
        "soft": json.dumps({"warm": share, "cold": 1 - share}),
    }


def _masked() -> list[dict[str, Any]]:
    words = {**WORDS, "input": "the {text} is [MASK]"}
    slots = "[P:2] the {text} [P:1] is [MASK]"
    best = {"train__keep": "best", "train__patience": 2, "train__eval_every": 2}
    return [
        recipe(
            {"type": "prompt-tuning", "length": 3, "reparameterization": SHARED}, task=words, train__steps=12,
            train__mixture={"by": "{label}", "sampling": "equal"}, train__lr=0.01,
        ),
        recipe({"type": "warp"}, task={**WORDS, "input": slots}, train__head_lr=0.01, train__steps=8),
        recipe(PREFIX, task={**TAGS, "input": "the {text}"}, train__accumulation=2, train__steps=7),
        recipe(
            {"type": "p-tuning", "length": 2, "reparameterization": {"type": "mlp"}}, task=SPAN, train__batch_size=3,
            train__steps=6, train__lr=0.01, train__head_lr=0.1,
        ),
        recipe(
            {"type": "prompt-tuning", "length": 4, "placement": "after-bos"}, train__optimizer="adafactor",
            task={"type": "cloze", "input": "the {text} is [MASK] .", "target": "{target}"}, train__steps=6,
        ),
        recipe({"type": "p-tuning"}, task={**words, "labels": LONG_WORDS, "input": slots}, train__steps=5),
        recipe({"type": "prompt-tuning", "length": 1}, task={**OWN, "input": "the {text} is [MASK]"}, train__steps=5),
        recipe(
            {"type": "p-tuning-v2", "length": 3, "reparameterization": {"hidden": 8, "layers": 2}},
            task={**HEAD, "input": "{text}", "soft": "{soft}", "temperature": 2.0}, train__steps=6, train__lr=0.01,
        ),
        recipe({"type": "head"}, task={**HEAD, "input": "{text}", "head": {}}, train__steps=9, train__optimizer="adam"),
        recipe(
            {"type": "prompt-tuning", "length": 2, "reparameterization": EACH}, task=words, train__steps=8,
            train__lr=0.01, **best,
        ),
        _still(recipe({"type": "pet", "patterns": ["[MASK] and the {text}"]}, task={**words, "labels": LONG_WORDS})),
        _still(recipe(DESIGN, task=words)),
    ]  # fmt: skip


def _causal() -> list[dict[str, Any]]:
    words = {**WORDS, "input": "the {text} is "}
    return [
        recipe(
            {"type": "prompt-tuning", "length": 3, "reparameterization": SHARED}, train__steps=12, train__lr=0.01,
            train__mixture={"by": "{label}", "cap": 9},
        ),
        recipe(
            {"type": "prefix-tuning", "length": 2, "embedding_only": True, "reparameterization": {"hidden": 8}},
            train__steps=6, train__gradient_checkpointing=True, train__lr=0.01,
        ),
        recipe({"type": "p-tuning-v2", "length": 2, "dropout": 0.2}, train__steps=7, train__seeds=[3]),
        recipe(
            {**PREFIX, "placement": "infix"}, task={**words, "input": "the {text}", "separator": " is "},
            train__steps=5, train__accumulation=2,
        ),
        recipe(
            {"type": "p-tuning"}, train__steps=6, train__optimizer="adam", train__lr=0.01,
            task={"type": "cloze", "input": "[P:2] the {text} [P:1] is", "target": "{target}"},
        ),
        recipe({"type": "prompt-tuning", "length": 2}, task={**OWN, "input": "the {text} is "}, train__steps=5),
        recipe(
            {"type": "prompt-tuning", "length": 2, "reparameterization": EACH}, task={**words, "labels": LONG_WORDS},
            train__steps=8, train__lr=0.01, train__keep="best", train__patience=2, train__eval_every=2,
        ),
        _still(recipe({"type": "pet", "patterns": ["a {text} and "]}, task=words)),
        _still(recipe(DESIGN)),
    ]  # fmt: skip


def _seq2seq() -> list[dict[str, Any]]:
    words = {**WORDS, "input": "the {text}"}
    slots = recipe({"type": "p-tuning"}, train__steps=6, train__lr=0.01)
    slots["task"] = {**slots["task"], "input": "[P:2] the {text} [P:1]"}
    return [
        recipe(
            {"type": "prompt-tuning", "length": 3, "reparameterization": SHARED}, train__steps=12, train__lr=0.01,
            train__mixture={"by": "{label}", "sampling": "equal"},
        ),
        recipe({"type": "prompt-tuning", "length": 5}, task=words, train__steps=8, train__batch_size=3),
        recipe({**PREFIX, "reparameterization": {"hidden": 8}}, task=words, train__steps=7, train__lr=0.01),
        slots,
        recipe({"type": "prompt-tuning", "length": 2}, task={**OWN, "input": "the {text}"}, train__steps=5),
        recipe(
            {"type": "prompt-tuning", "length": 2, "reparameterization": EACH}, train__steps=8, train__lr=0.01,
            train__keep="best", train__patience=2, train__eval_every=2,
        ),
        _still(recipe({"type": "pet", "patterns": ["a {text}"]}, task=words)),
        _still(recipe(DESIGN)),
    ]  # fmt: skip


def _still(one: dict[str, Any]) -> dict[str, Any]:
    """Of a method that trains nothing: it is scored beside the others."""
    kept = {key: value for key, value in one["train"].items() if key == "eval_batch_size"}
    return {**one, "train": kept}
