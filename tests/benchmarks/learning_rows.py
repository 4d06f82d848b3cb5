"""The rows of the proof of learning: which recipe stands for which line, and what the papers say of each ablation."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

from tests.benchmarks.report import real_data

Settings = dict[str, Any]

SEEDS = (1, 2, 3)
ONE = SEEDS[:1]  #: where nothing is drawn
RELATIONS = ("P36", "P103", "P176")
ADAPTED = (100, 400)  #: steps of LM adaptation
SIZES = (32, 64, 96)  #: widths of the decoders; the last one is the base of all other rows

DESIGN: Settings = {"type": "prompt-design"}
FINE_TUNING: Settings = {"type": "fine-tuning"}
PROMPT: Settings = {"type": "prompt-tuning", "length": 20}
PREFIX: Settings = {"type": "prefix-tuning", "length": 10}


@dataclass(frozen=True)
class Plan:
    """One row of a table: a recipe with all its seeds."""

    part: str
    row: str
    base: str
    dataset: str
    task: Settings
    method: Settings
    train: Settings = field(default_factory=dict)
    seeds: tuple[int, ...] = SEEDS

    @property
    def name(self) -> str:
        """Made of what the recipe says: equal rows of two tables are trained once, a changed row anew."""
        digest = hashlib.sha256(json.dumps(self._said(), sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.dataset}-{self.method['type']}-{digest}"

    @property
    def alone(self) -> bool:
        """Whether its jobs have the base for themselves."""
        return self.method["type"] in ("fine-tuning", "lm-adapt", "autoprompt", "pet")

    def recipe(self, seed: int) -> Settings:
        said, task = self._said(), self.task
        if "vocabulary" in task:  # wherever the data lies, the row is the same
            task = task | {"vocabulary": str(real_data("lama") / task["vocabulary"])}
        return {"name": f"{self.name}-seed-{seed}", **said, "task": task, "train": said["train"] | {"seed": seed}}

    def _said(self) -> Settings:
        train = {"baseline": False, "eval_batch_size": 64, "checkpoint_every": 1000, **self.train}
        return {"base": self.base, "dataset": self.dataset, "task": self.task, "method": self.method, "train": train}

    def quick(self) -> Plan:
        """Two steps of it, one seed."""
        train = self.train | ({"steps": 2, "warmup": 0} if "steps" in self.train else {})
        return replace(self, train=train, seeds=self.seeds[:1])


def adaptations() -> dict[str, Plan]:
    """Name of an adapted base -> the job that makes it: a base that has only seen forms goes on with prose."""
    task = {"type": "text", "input": "{text}", "max_input_tokens": 64}
    train = {"batch_size": 32, "lr": 2e-3, "schedule": "constant"}
    return {
        f"e2e-adapted-{steps}": Plan(
            "LM adaptation", f"{steps} steps", "e2e-forms-only", "e2e-prose", task, {"type": "lm-adapt"},
            train | {"steps": steps}, ONE,
        )
        for steps in ADAPTED
    }  # fmt: skip


# ---- E2E, on decoders that are pretrained here

E2E_TASK: Settings = {
    "type": "generate", "input": "{source}", "target": "{target}", "metrics": ["bleu", "rouge_l"],
    "max_input_tokens": 120, "max_new_tokens": 60,
}  # fmt: skip
E2E_TRAIN: Settings = {"batch_size": 8, "warmup": 20, "eval_batch_size": 128}
LAYERS: Settings = E2E_TRAIN | {"steps": 200, "lr": 5e-2}  #: of keys and values
PERCEPTRON: Settings = E2E_TRAIN | {"steps": 200, "lr": 2e-2}
#: embeddings learn slowly on these bases, by Adafactor at 0.3 a little better than by AdamW
EMBEDDINGS: Settings = E2E_TRAIN | {
    "steps": 600, "optimizer": "adafactor", "lr": 0.3, "schedule": "constant", "weight_decay": 1e-5, "clip": None,
}  # fmt: skip
WHOLE: Settings = E2E_TRAIN | {"steps": 200, "lr": 1e-3}


def _e2e(row: str, method: Settings, train: Settings, *, base: str = "e2e-96", part: str = "E2E") -> Plan:
    return Plan(part, row, base, "e2e", E2E_TASK, method, train, SEEDS if "steps" in train else ONE)


def e2e_rows() -> list[Plan]:
    network = {"type": "p-tuning", "length": 20, "reparameterization": {"type": "mlp"}, "init": {"type": "random"}}
    return [
        _e2e("prompt design", DESIGN, {"eval_batch_size": 128}),
        _e2e("prompt tuning, n 20", PROMPT, EMBEDDINGS),
        _e2e("P-tuning, n 20, MLP", network, E2E_TRAIN | {"steps": 600, "lr": 1e-2}),
        _e2e("prefix tuning, n 10", PREFIX, LAYERS),
        _e2e("fine-tuning", FINE_TUNING, WHOLE),
    ]


def prefix_lengths() -> list[Plan]:
    return [_e2e(f"n {n}", PREFIX | {"length": n}, LAYERS, part="prefix length") for n in (1, 5, 10, 40)]


def prefix_starts() -> list[Plan]:
    part = "prefix start"
    return [
        _e2e("random", PREFIX | {"init": {"type": "normal"}}, LAYERS, part=part),
        _e2e("words' activations", PREFIX, LAYERS, part=part),
    ]


def networks() -> list[Plan]:
    part = "reparameterisation"
    return [
        _e2e("off", PREFIX, LAYERS, part=part),
        _e2e("on", PREFIX | {"reparameterization": {"hidden": 128}}, PERCEPTRON, part=part),
    ]


def places() -> list[Plan]:
    part = "placement"
    return [
        _e2e("prefix", PREFIX, LAYERS, part=part),
        _e2e("infix", PREFIX | {"placement": "infix"}, LAYERS, part=part),
        _e2e("embedding-only", PREFIX | {"embedding_only": True}, EMBEDDINGS, part=part),
    ]


def adapted_bases() -> list[Plan]:
    part = "LM adaptation"
    bases = {"0 steps": "e2e-forms-only"} | {f"{steps} steps": f"e2e-adapted-{steps}" for steps in ADAPTED}
    return [_e2e(row, PREFIX, LAYERS, base=base, part=part) for row, base in bases.items()]


def sizes() -> dict[int, list[Plan]]:
    """Width -> prompt tuning, prefix tuning and fine-tuning on the base of that width."""
    methods = (
        ("prompt tuning", PROMPT, EMBEDDINGS), ("prefix tuning", PREFIX, LAYERS), ("fine-tuning", FINE_TUNING, WHOLE)
    )  # fmt: skip
    return {
        width: [_e2e(f"width {width}, {row}", *rest, base=f"e2e-{width}", part="base size") for row, *rest in methods]
        for width in SIZES
    }


# ---- heads on a sentence encoder


def sst2_rows() -> list[Plan]:
    task = {
        "type": "classify", "input": "{sentence}", "label": "{label}", "labels": [0, 1], "head": {"pooling": "mean"},
        "max_input_tokens": 40,
    }  # fmt: skip
    train = {"steps": 80, "batch_size": 16, "head_lr": 1e-2, "warmup": 5}
    rows: list[tuple[str, Settings, Settings]] = [
        ("head alone", {"type": "head"}, {"lr": 1e-2}),
        ("prompt tuning, n 10", {"type": "prompt-tuning", "length": 10}, {"lr": 3e-2}),
        ("P-tuning v2, n 10", {"type": "p-tuning-v2", "length": 10}, {"lr": 1e-2}),
        ("biases (BitFit)", FINE_TUNING | {"weights": "biases"}, {"lr": 3e-3}),
        ("fine-tuning", FINE_TUNING, {"lr": 1e-4, "head_lr": 3e-3}),
    ]
    return [Plan("SST-2", row, "minilm", "sst2", task, method, train | change) for row, method, change in rows]


#: task -> (input, labels, metric)
FEWGLUE: dict[str, tuple[str, list[Any], str]] = {
    "BoolQ": ("{question} ? {passage}", ["false", "true"], "accuracy"),
    "CB": ("{premise} ; {hypothesis}", ["contradiction", "entailment", "neutral"], "cb"),
    "RTE": ("{hypothesis} ; {premise}", ["entailment", "not_entailment"], "accuracy"),
    "WiC": ("{word} : {sentence1} ; {sentence2}", ["false", "true"], "accuracy"),
}


ON_MINILM: list[tuple[str, Settings, Settings]] = [
    ("head alone", {"type": "head"}, {"lr": 1e-2}),
    ("prompt tuning, n 10", {"type": "prompt-tuning", "length": 10}, {"lr": 3e-2}),
    ("fine-tuning", FINE_TUNING, {"lr": 1e-4, "head_lr": 3e-3}),
]


def fewglue_rows() -> list[Plan]:
    return [
        _headed(f"FewGLUE {name}", name.lower(), {"input": text, "labels": labels, "metrics": [metric]}, *row)
        for name, (text, labels, metric) in FEWGLUE.items()
        for row in ON_MINILM
    ]


def _headed(part: str, dataset: str, said: Settings, row: str, method: Settings, change: Settings) -> Plan:
    task = {"type": "classify", "head": {"pooling": "mean"}, "max_input_tokens": 48, **said}
    train = {"steps": 30, "batch_size": 8, "head_lr": 1e-2, "warmup": 3}
    return Plan(part, row, "minilm", dataset, task, method, train | change)


# ---- the other FewGLUE tasks: answers that are a row's own, on a masked base that is pretrained here; heads

#: task -> (its template, the same with slots, what it chooses from, max_input_tokens)
CHOICES: dict[str, tuple[str, str, Settings, int]] = {
    "COPA": (
        "{begun} [MASK] .", "[P:2] {begun} [P:2] [MASK] .",
        {"labels": {"0": ["{end1}"], "1": ["{end2}"]}, "metrics": ["accuracy"]}, 60,
    ),
    "WSC": (
        "{marked} the pronoun {pronoun} refers to [MASK] .", "[P:2] {marked} the pronoun {pronoun} [P:2] [MASK] .",
        {"candidates": "{candidates}", "label": "{span}", "holds": "{label}", "metrics": ["wsc"]}, 60,
    ),
    "ReCoRD": (
        "{passage} {before} [MASK] {after}", "[P:2] {passage} [P:2] {before} [MASK] {after}",
        {"candidates": "{candidates}", "label": "{answers}", "metrics": ["record_f1", "record_em"]}, 80,
    ),
}  # fmt: skip


def choice_rows() -> list[Plan]:
    found = []
    train = {"steps": 150, "batch_size": 8, "warmup": 5, "eval_batch_size": 32}
    for name, (plain, slots, choice, limit) in CHOICES.items():
        rows: list[tuple[str, str, Settings, Settings]] = [
            ("prompt design", plain, DESIGN, {"eval_batch_size": 32}),
            ("P-tuning, n 4", slots, {"type": "p-tuning"}, train | {"lr": 1e-2}),
            ("fine-tuning", plain, FINE_TUNING, train | {"lr": 5e-4}),
        ]
        for row, text, method, change in rows:
            task = {"type": "classify", "input": text, "max_input_tokens": limit, **choice}
            seeds = SEEDS if "steps" in change else ONE
            found.append(Plan(f"FewGLUE {name}", row, "english", f"{name.lower()}-rows", task, method, change, seeds))
    return found


def multirc_rows() -> list[Plan]:
    said = {
        "input": "{question} ; {answer} ; {passage}", "labels": [0, 1], "group": "{group}",
        "metrics": ["positive_f1", "group_exact_match"],
    }  # fmt: skip
    return [
        _headed("FewGLUE MultiRC", "multirc-few", said, row, method, {**change, "steps": 60})
        for row, method, change in ON_MINILM
    ]


# ---- [MASK] in masked bases that are pretrained here


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
    encoder = CLOZE_TRAIN | {"lr": 5e-3}
    trained: list[tuple[str, str, Settings, Settings]] = [
        ("AutoPrompt, 3 words", "{sub_label} [T:3] [MASK] .", {"type": "autoprompt", "candidates": 10}, search),
        ("P-tuning, (3, sub, 3, obj)", "[P:3] {sub_label} [P:3] [MASK] .", {"type": "p-tuning"}, encoder),
        ("prompt tuning, n 6", "{sub_label} [MASK] .", {"type": "prompt-tuning", "length": 6}, CLOZE_PROMPTS),
        ("fine-tuning", "{sub_label} [MASK] .", FINE_TUNING, CLOZE_TRAIN | {"lr": 5e-4}),
    ]  # fmt: skip
    found = []
    for relation in RELATIONS:
        words = [(f"prompt design, {row}", texts[relation], DESIGN, {}) for row, texts in templates.items()]
        for row, template, method, change in (*words, *trained):
            task = CLOZE | {"input": template}
            plan = Plan(f"LAMA {relation}", row, "small-facts", relation.lower(), task, method, change)
            found.append(plan if change else replace(plan, seeds=ONE))
    return found


def prompt_lengths() -> list[Plan]:
    return [_cloze(f"n {n}", {"type": "prompt-tuning", "length": n}, "prompt length") for n in (1, 6, 20, 40)]


def prompt_starts() -> list[Plan]:
    six: Settings = {"type": "prompt-tuning", "length": 6}
    starts = {"random": {"type": "random"}, "task text": {"type": "text", "text": "the capital of this country is"}}
    plain = [_cloze("vocabulary", six, "prompt start")]
    return [*plain, *(_cloze(row, six | {"init": init}, "prompt start") for row, init in starts.items())]


def _cloze(row: str, method: Settings, part: str) -> Plan:
    return Plan(part, row, "small-facts", "p36", CLOZE | {"input": "{sub_label} [MASK] ."}, method, CLOZE_PROMPTS)


def chinese_rows() -> list[Plan]:
    plain = "{sentence} 总体评价是 [MASK] 的"
    task = {
        "type": "classify", "input": plain, "label": "{label}", "labels": {"Positive": ["好"], "Negative": ["差"]},
        "max_input_tokens": 60,
    }  # fmt: skip
    slots = task | {"input": f"[P:4] {plain}"}
    patterns = {"type": "pet", "patterns": ["{sentence} 这个东西很 [MASK]"]}
    train = {"steps": 150, "batch_size": 16, "warmup": 5}
    rows: list[tuple[str, Settings, Settings, Settings]] = [
        ("prompt design", task, DESIGN, {}),
        ("PET, two patterns, base frozen", task, patterns, {}),
        ("P-tuning, n 4", slots, {"type": "p-tuning"}, train | {"lr": 1e-3}),
        ("WARP, n 4", slots, {"type": "warp"}, train | {"lr": 3e-2, "head_lr": 1e-2}),
        ("P-tuning v2, n 8", task, {"type": "p-tuning-v2", "length": 8}, train | {"lr": 3e-3}),
        ("PET, two patterns, base trained", task, patterns, train | {"base_lr": 5e-4}),
        ("fine-tuning", task, FINE_TUNING, train | {"lr": 5e-4}),
    ]
    return [
        Plan("EPRSTMT", row, "small-chinese", "eprstmt", its, method, change, SEEDS if change else ONE)
        for row, its, method, change in rows
    ]


def lama_templates(source: str) -> dict[str, str]:
    """Relation -> template with our slots."""
    path = real_data("lama") / f"{source}_relations.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {one["relation"]: _slots(one["template"]) for one in lines if one["relation"] in RELATIONS}


def _slots(template: str) -> str:
    plain = template.replace("{", "{{").replace("}", "}}").replace("[X]", "\0").replace("[Y]", "\1")
    return plain.replace("[", r"\[").replace("\0", "{sub_label}").replace("\1", "[MASK]")


def all_rows() -> list[Plan]:
    of_sizes = [plan for plans in sizes().values() for plan in plans]
    few = [*fewglue_rows(), *choice_rows(), *multirc_rows()]
    main = [*e2e_rows(), *sst2_rows(), *few, *lama_rows(), *chinese_rows()]
    studies = [*prefix_lengths(), *prompt_lengths(), *prompt_starts(), *prefix_starts(), *networks(), *places()]
    return [*main, *studies, *adapted_bases(), *of_sizes]
