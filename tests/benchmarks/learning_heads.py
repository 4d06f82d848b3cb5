"""SST-2 and FewGLUE with a head on a sentence encoder."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.learning_plan import FINE_TUNING, Plan, Settings


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


def multirc_rows() -> list[Plan]:
    said = {
        "input": "{question} ; {answer} ; {passage}", "labels": [0, 1], "group": "{group}",
        "metrics": ["positive_f1", "group_exact_match"],
    }  # fmt: skip
    return [
        _headed("FewGLUE MultiRC", "multirc-few", said, row, method, {**change, "steps": 60})
        for row, method, change in ON_MINILM
    ]
