"""Answers at [MASK], of masked bases that are pretrained here: FewGLUE, SST-2 and Chinese reviews."""

from __future__ import annotations

from dataclasses import replace

from tests.benchmarks.learning_plan import DESIGN, FINE_TUNING, ONE, SEEDS, Plan, Settings

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


#: dataset -> (part, two of PET's patterns, label -> a word that is one token of the base, the rest of the task)
WORDS: dict[str, tuple[str, str, str, dict[str, list[str]], Settings]] = {
    "sst2": (
        "SST-2, masked base", "{sentence} it was [MASK] .", "just [MASK] ! {sentence}",
        {"0": ["bad"], "1": ["good"]}, {"label": "{label}", "max_input_tokens": 60},
    ),
    "boolq": (
        "FewGLUE BoolQ, masked base",
        "question : {question} ? answer : [MASK] . {passage}", "{question} ? [MASK] . {passage}",
        {"false": ["no"], "true": ["so"]}, {"max_input_tokens": 80},
    ),
    "cb": (
        "FewGLUE CB, masked base", "{hypothesis} ? [MASK] , {premise}", "{hypothesis} ? [MASK] . {premise}",
        {"contradiction": ["no"], "entailment": ["so"], "neutral": ["but"]},
        {"metrics": ["cb"], "max_input_tokens": 80},
    ),
    "rte": (
        "FewGLUE RTE, masked base", "{hypothesis} ? [MASK] , {premise}", "{hypothesis} ? [MASK] . {premise}",
        {"entailment": ["so"], "not_entailment": ["no"]}, {"max_input_tokens": 80},
    ),
    "wic": (
        "FewGLUE WiC, masked base",
        "{sentence1} {sentence2} does {word} have the same meaning ? [MASK] .",
        "{sentence1} / {sentence2} similar sense of {word} ? [MASK] .",
        {"false": ["no"], "true": ["so"]}, {"max_input_tokens": 80},
    ),
    "multirc-few": (
        "FewGLUE MultiRC, masked base",
        "question : {question} ? is it {answer} ? [MASK] . {passage}", "{question} ? {answer} ? [MASK] . {passage}",
        {"0": ["no"], "1": ["so"]}, {"metrics": ["positive_f1"], "max_input_tokens": 80},
    ),
}  # fmt: skip
IN_FULL = ("sst2", "cb")  #: by every method; the others, which so small a base hardly learns, by four


def words_rows() -> list[Plan]:
    return [plan for dataset in WORDS for plan in _by_words(dataset)]


def _by_words(dataset: str) -> list[Plan]:
    part, first, second, labels, rest = WORDS[dataset]
    task = {"type": "classify", "input": first, "labels": labels, **rest}
    slots, patterns = task | {"input": f"[P:4] {first}"}, {"type": "pet", "patterns": [second]}
    train = {"steps": 300, "batch_size": 16} if dataset == "sst2" else {"steps": 60, "batch_size": 8}
    train |= {"warmup": 5}
    rows: list[tuple[str, Settings, Settings, Settings]] = [
        ("prompt design", task, DESIGN, {}),
        ("PET, two patterns, base frozen", task, patterns, {}),
        ("prompt tuning, n 10", task, {"type": "prompt-tuning", "length": 10}, train | {"lr": 3e-2}),
        ("P-tuning, n 4", slots, {"type": "p-tuning"}, train | {"lr": 1e-2}),
        ("WARP, n 4", slots, {"type": "warp"}, train | {"lr": 3e-2, "head_lr": 1e-2}),
        ("P-tuning v2, n 8", task, {"type": "p-tuning-v2", "length": 8}, train | {"lr": 1e-2}),
        ("PET, two patterns, base trained", task, patterns, train | {"base_lr": 5e-4}),
        ("fine-tuning", task, FINE_TUNING, train | {"lr": 5e-4}),
    ]
    return [
        Plan(part, row, "english", dataset, its, method, change, SEEDS if change else ONE)
        for row, its, method, change in rows
        if dataset in IN_FULL or row in ("prompt design", "prompt tuning, n 10", "P-tuning, n 4", "fine-tuning")
    ]


def label_starts() -> list[Plan]:
    """Prompt tuning on SST-2 from each of Lester et al.'s three starts."""
    plain = next(one for one in words_rows() if one.dataset == "sst2" and one.row.startswith("prompt tuning"))
    starts = {"vocabulary": None, "random": {"type": "random"}, "class labels": {"type": "labels"}}
    return [
        replace(plain, part="prompt start", row=f"SST-2, {row}", method=plain.method | ({"init": init} if init else {}))
        for row, init in starts.items()
    ]


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
