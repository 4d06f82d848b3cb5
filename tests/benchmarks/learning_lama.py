"""LAMA's relations on bases that are pretrained here, and the ablations of prompts."""

from __future__ import annotations

import json
from dataclasses import replace

from tests.benchmarks.learning_plan import DESIGN, FINE_TUNING, ONE, Plan, Settings
from tests.benchmarks.report import real_data

RELATIONS = ("P36", "P103", "P176")

CLOZE: Settings = {
    "type": "cloze", "target": "{obj_label}", "max_input_tokens": 40,
    "vocabulary": "common_vocab_cased.txt",
}  # fmt: skip
CLOZE_TRAIN: Settings = {"steps": 200, "batch_size": 16, "warmup": 5}
CLOZE_PROMPTS: Settings = CLOZE_TRAIN | {"lr": 3e-2}


def lama_rows() -> list[Plan]:
    sources = {"manual": "LAMA", "LPAQA's words": "LPAQA", "AutoPrompt's words": "AutoPrompt"}
    templates = {row: lama_templates(source) for row, source in sources.items()}
    search = {"steps": 40, "batch_size": 32}
    encoder, slots = CLOZE_TRAIN | {"lr": 5e-3}, "[P:3] {sub_label} [P:3] [MASK] ."
    trained: list[tuple[str, str, Settings, Settings]] = [
        ("AutoPrompt, 3 words", "{sub_label} [T:3] [MASK] .", {"type": "autoprompt", "candidates": 10}, search),
        ("P-tuning, (3, sub, 3, obj)", slots, {"type": "p-tuning"}, encoder),
        ("prompt tuning, n 6", "{sub_label} [MASK] .", {"type": "prompt-tuning", "length": 6}, CLOZE_PROMPTS),
        ("fine-tuning", "{sub_label} [MASK] .", FINE_TUNING, CLOZE_TRAIN | {"lr": 5e-4}),
    ]  # fmt: skip
    found = []
    for relation in RELATIONS:
        words = [(f"prompt design, {row}", texts[relation], DESIGN, {}) for row, texts in templates.items()]
        shots = ("prompt design, manual, 2 examples", templates["manual"][relation], DESIGN | {"shots": 2}, {})
        for row, template, method, change in (*words, shots, *trained):
            task = CLOZE | {"input": template}
            plan = Plan(f"LAMA {relation}", row, "small-facts", relation.lower(), task, method, change)
            found.append(plan if change or "shots" in method else replace(plan, seeds=ONE))
    return found


def joint_training() -> list[Plan]:
    """P-tuning of P36 with the base frozen, and trained at a rate of its own."""
    frozen = next(one for one in lama_rows() if one.row.startswith("P-tuning"))
    joint = replace(frozen, train=frozen.train | {"base_lr": 5e-4})
    whole = next(one for one in lama_rows() if one.row == "fine-tuning")
    rows = {"P-tuning, base frozen": frozen, "P-tuning, base trained": joint, "fine-tuning": whole}
    return [replace(one, part="joint training", row=row) for row, one in rows.items()]


def mixture_rows() -> list[Plan]:
    """One prompt for the three relations, told apart by a code, in as many steps as one each takes together."""
    task = CLOZE | {"input": "{task} : {sub_label} [MASK] ."}
    train = CLOZE_PROMPTS | {"steps": 600, "mixture": {"by": "{task}", "sampling": "equal"}}
    each = {one.part: one for one in lama_rows() if one.row == "prompt tuning, n 6"}
    one = Plan("mixture", "", "small-facts", "relations", task, {"type": "prompt-tuning", "length": 6}, train)
    found = []
    for relation in RELATIONS:
        own = replace(each[f"LAMA {relation}"], part="mixture", row=f"{relation}, a prompt of its own")
        found += [own, replace(one, row=f"{relation}, one prompt for three", shown=f"p_at_1:{relation}")]
    return found


def prompt_lengths() -> list[Plan]:
    return [_cloze(f"n {n}", {"type": "prompt-tuning", "length": n}, "prompt length") for n in (1, 6, 20, 40)]


def prompt_starts() -> list[Plan]:
    six: Settings = {"type": "prompt-tuning", "length": 6}
    starts = {"random": {"type": "random"}, "task text": {"type": "text", "text": "the capital of this country is"}}
    plain = [_cloze("vocabulary", six, "prompt start")]
    plain += [_cloze(row, six | {"init": init}, "prompt start") for row, init in starts.items()]
    trained = {one.dataset: one for one in lama_rows() if one.row == "prompt tuning, n 6"}
    sources = {"P176's prompt": [trained["p176"]], "mean of P103's and P176's": [trained["p103"], trained["p176"]]}
    return [*plain, *(replace(plain[0], row=row, starts=tuple(of)) for row, of in sources.items())]


def prompt_networks() -> list[Plan]:
    six: Settings = {"type": "prompt-tuning", "length": 6}
    residual = six | {"reparameterization": {"type": "residual", "hidden": 128}}
    return [_cloze("off", six, "residual network"), _cloze("on", residual, "residual network")]


def _cloze(row: str, method: Settings, part: str) -> Plan:
    return Plan(part, row, "small-facts", "p36", CLOZE | {"input": "{sub_label} [MASK] ."}, method, CLOZE_PROMPTS)


def lama_templates(source: str) -> dict[str, str]:
    """Relation -> template with our slots."""
    path = real_data("lama") / f"{source}_relations.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {one["relation"]: _slots(one["template"]) for one in lines if one["relation"] in RELATIONS}


def _slots(template: str) -> str:
    plain = template.replace("{", "{{").replace("}", "}}").replace("[X]", "\0").replace("[Y]", "\1")
    return plain.replace("[", r"\[").replace("\0", "{sub_label}").replace("\1", "[MASK]")
