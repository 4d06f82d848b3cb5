"""E2E on decoders that are pretrained here, and the ablations of prefixes."""

from __future__ import annotations

from dataclasses import replace

from tests.benchmarks.learning_plan import DESIGN, FINE_TUNING, LORA, ONE, SEEDS, Plan, Settings

ADAPTED = (100, 400)  #: steps of LM adaptation
LOW_DATA = (50, 100, 200, 500)  #: training rows, as Li & Liang took
SIZES = (32, 64, 96)  #: widths of the decoders; the last one is the base of all other rows

PROMPT: Settings = {"type": "prompt-tuning", "length": 20}
PREFIX: Settings = {"type": "prefix-tuning", "length": 10}

E2E_TASK: Settings = {
    "type": "generate", "input": "{source}", "target": "{target}", "metrics": ["bleu", "rouge_l"],
    "max_input_tokens": 120, "max_new_tokens": 60,
}  # fmt: skip
E2E_TRAIN: Settings = {"batch_size": 8, "warmup": 20, "eval_batch_size": 128}
#: More steps bring nothing to keys and values (42.8 BLEU after 600, 42.6 after 1,000), or to embeddings (26.6 after
#: 1,500, 26.4 after 3,000); fine-tuning goes on from 45 after 200 to 60.
LAYERS: Settings = E2E_TRAIN | {"steps": 600, "lr": 5e-2}  #: of keys and values
PERCEPTRON: Settings = E2E_TRAIN | {"steps": 600, "lr": 2e-2}
EMBEDDINGS: Settings = E2E_TRAIN | {"steps": 1500, "lr": 5e-2}
EMBEDDINGS_OF_PREFIX: Settings = E2E_TRAIN | {"steps": 1000, "lr": 5e-2}
NETWORK: Settings = E2E_TRAIN | {"steps": 1000, "lr": 1e-2}
LOW_RANK: Settings = E2E_TRAIN | {"steps": 600, "lr": 1e-2}
WHOLE: Settings = E2E_TRAIN | {"steps": 600, "lr": 2e-3}

#: Where bases are compared, or few rows: prompts by Lester et al.'s optimizer.
SHORT_LAYERS: Settings = E2E_TRAIN | {"steps": 200, "lr": 5e-2}
SHORT_WHOLE: Settings = E2E_TRAIN | {"steps": 200, "lr": 1e-3}
ADAFACTOR: Settings = E2E_TRAIN | {
    "steps": 600, "optimizer": "adafactor", "lr": 0.3, "schedule": "constant", "weight_decay": 1e-5, "clip": None,
}  # fmt: skip


def _e2e(row: str, method: Settings, train: Settings, *, base: str = "e2e-96", part: str = "E2E") -> Plan:
    return Plan(part, row, base, "e2e", E2E_TASK, method, train, SEEDS if "steps" in train else ONE)


def e2e_rows() -> list[Plan]:
    network = {"type": "p-tuning", "length": 20, "reparameterization": {"type": "mlp"}, "init": {"type": "random"}}
    return [
        _e2e("prompt design", DESIGN, {"eval_batch_size": 128}),
        replace(_e2e("prompt design, 1 example", DESIGN | {"shots": 1}, {"eval_batch_size": 128}), seeds=SEEDS),
        _e2e("prompt tuning, n 20", PROMPT, EMBEDDINGS),
        _e2e("P-tuning, n 20, MLP", network, NETWORK),
        _e2e("prefix tuning, n 10", PREFIX, LAYERS),
        _e2e("LoRA, rank 8", LORA, LOW_RANK),
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
        _e2e("embedding-only", PREFIX | {"embedding_only": True}, EMBEDDINGS_OF_PREFIX, part=part),
    ]


def low_data() -> dict[int, list[Plan]]:
    """Training rows -> prefix tuning and fine-tuning on so many."""
    methods = (("prefix tuning", PREFIX, SHORT_LAYERS), ("fine-tuning", FINE_TUNING, SHORT_WHOLE))
    return {
        size: [
            replace(_e2e(f"{size} rows, {row}", *rest, part="low data"), dataset=f"e2e-{size}-rows")
            for row, *rest in methods
        ]
        for size in LOW_DATA
    }


def adapted_bases() -> list[Plan]:
    part = "LM adaptation"
    bases = {"0 steps": "e2e-forms-only"} | {f"{steps} steps": f"e2e-adapted-{steps}" for steps in ADAPTED}
    return [_e2e(row, PREFIX, SHORT_LAYERS, base=base, part=part) for row, base in bases.items()]


def sizes() -> dict[int, list[Plan]]:
    """Width -> prompt tuning, prefix tuning and fine-tuning on the base of that width."""
    methods = (
        ("prompt tuning", PROMPT, ADAFACTOR),
        ("prefix tuning", PREFIX, SHORT_LAYERS),
        ("fine-tuning", FINE_TUNING, SHORT_WHOLE),
    )
    return {
        width: [_e2e(f"width {width}, {row}", *rest, base=f"e2e-{width}", part="base size") for row, *rest in methods]
        for width in SIZES
    }


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
