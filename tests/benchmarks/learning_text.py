"""E2E text to text: an encoder-decoder base pretrained here with span corruption, then adapted for some steps."""

from __future__ import annotations

from dataclasses import replace

from tests.benchmarks.learning_e2e import E2E_TASK, E2E_TRAIN, PREFIX, PROMPT
from tests.benchmarks.learning_plan import DESIGN, FINE_TUNING, ONE, SEEDS, Claim, Plan, Settings

BASE = "e2e-t5"
STEPS = (0, 100, 400)  #: of LM adaptation
PART = "E2E, T5"

METHODS: tuple[tuple[str, Settings, Settings], ...] = (
    ("prompt design", DESIGN, {"eval_batch_size": 128}),
    ("prompt tuning, n 20", PROMPT, E2E_TRAIN | {"steps": 400, "lr": 0.3}),
    ("prefix tuning, n 10", PREFIX, E2E_TRAIN | {"steps": 300, "lr": 2e-2}),
    ("fine-tuning", FINE_TUNING, E2E_TRAIN | {"steps": 300, "lr": 3e-3}),
)


def _adapted(steps: int) -> str:
    return f"{BASE}-adapted-{steps}" if steps else BASE


def text_rows() -> list[Plan]:
    """On the base that was adapted longest."""
    return [
        Plan(PART, row, _adapted(max(STEPS)), "e2e", E2E_TASK, method, train, SEEDS if "steps" in train else ONE)
        for row, method, train in METHODS
    ]


def text_adaptations() -> list[Plan]:
    """The same prompts on each base."""
    return [
        replace(plan, part="LM adaptation, T5", row=f"{steps} steps, {plan.row}", base=_adapted(steps))
        for steps in STEPS
        for plan in text_rows()
        if plan.method != FINE_TUNING
    ]


def adaptations() -> dict[str, Plan]:
    """Name of an adapted base -> the job that makes and registers it."""
    task = {"type": "text", "input": "{source} || {description}", "max_input_tokens": 120}
    train = {"batch_size": 16, "lr": 2e-3, "schedule": "constant"}
    return {
        _adapted(steps): Plan(
            "LM adaptation, T5", f"{steps} steps", BASE, "e2e-forms", task,
            {"type": "lm-adapt", "register_as": _adapted(steps)}, train | {"steps": steps}, ONE,
        )
        for steps in STEPS if steps
    }  # fmt: skip


def text_claims() -> list[Claim]:
    none, some, more = (plan for plan in text_adaptations() if plan.method == PROMPT)
    design, prompts, prefixes, whole = text_rows()
    return [
        Claim("LM adaptation, T5: some steps let a prompt be tuned, none do not (Lester)", some, none),
        Claim("LM adaptation, T5: more steps beat fewer (Lester)", more, some),
        Claim("E2E, T5: a tuned prompt is above prompt design (Lester)", prompts, design),
        Claim("E2E, T5: fine-tuning is above prompt tuning on small bases (Lester)", whole, prompts),
        Claim("E2E, T5: three prefixes do more than the encoder's embeddings (Li & Liang)", prefixes, prompts),
        Claim("E2E, T5: three prefixes reach fine-tuning (Li & Liang, of BART)", prefixes, whole, same=True),
    ]
