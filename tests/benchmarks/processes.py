"""One process against two, DDP and every ZeRO stage: the same loss curve and the same prompt.

make proof-processes
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.benchmarks.report import REPOSITORY, write_page

sys.path.insert(0, str(REPOSITORY / "tests"))

from processes import Launched, largest_difference, launch
from training_fixtures import MadeRun, make_base, make_dataset, recipe

STEPS = 50
METHODS: dict[str, dict[str, Any]] = {
    "prompt-tuning": {"type": "prompt-tuning", "length": 5},
    "prefix-tuning": {"type": "prefix-tuning", "length": 5, "reparameterization": {"hidden": 16}},
    "p-tuning": {"type": "p-tuning", "length": 5},
}
LAYOUTS: dict[str, tuple[int, int | None]] = {
    "DDP": (2, None),
    "ZeRO-0": (2, 0),
    "ZeRO-2": (2, 2),
    "ZeRO-3": (2, 3),
}
GOAL = 1e-4

_WORDS = {"type": "classify", "labels": {"warm": ["red"], "cold": ["black"]}}
#: What reads the base's output matrix itself, which ZeRO-3 has cut into pieces: jobs of one run on a masked base.
READERS: dict[str, dict[str, Any]] = {
    "warp": recipe(
        {"type": "warp"}, train__steps=STEPS, train__lr=0.01, task=_WORDS | {"input": "[P:2] {text} [MASK] [P]"}
    ),
    "autoprompt, label words found": recipe(
        {"type": "autoprompt", "candidates": 4, "label_words": 1, "init": {"type": "vocab"}},
        train__steps=6, train__batch_size=6, task=_WORDS | {"input": "[T:2] {text} [MASK]"},
    ),
}  # fmt: skip
del READERS["autoprompt, label words found"]["train"]["lr"]


def main() -> int:
    rows, worst = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        made = {"base": make_base(root / "base", "gpt2"), "dataset": make_dataset(root / "data", train=200)}
        for method, config in METHODS.items():
            wanted = recipe(config, train__steps=STEPS, train__batch_size=6, train__lr=0.01)
            one = launch(root / f"{method}-one", [wanted], processes=1, zero=None, **made)
            for layout, (processes, zero) in LAYOUTS.items():
                two = launch(root / f"{method}-{layout}", [wanted], processes=processes, zero=zero, **made)
                worst = max(worst, largest_difference(one.run, two.run))
                rows.append([method, layout, *_row(one, two)])
                print(rows[-1], flush=True)
        found, differences = _readers(root, made["dataset"])
        rows, worst = rows + found, max(worst, differences)
    text = (
        f"The same job ({STEPS} steps, global batch 6, fp32, gloo) with one process and with two. Differences are the "
        "largest over all steps (loss) and over all numbers of the saved prompt, relative to their largest. "
        f"The goal is {GOAL:g}; the first ZeRO run of a machine also builds a small communication op."
    )
    columns = [
        "method",
        "two processes",
        "loss, step 1",
        "loss, last step",
        "largest difference of loss",
        "of the prompt",
        "seconds",
    ]
    write_page("processes", "One process and two", "make proof-processes", text, columns, rows)
    return 0 if worst < GOAL else 1


def _readers(root: Path, dataset: Path) -> tuple[list[list[str]], float]:
    """Two jobs in one run, with one process and under ZeRO-3: the same losses, and the same words found."""
    where: dict[str, Any] = {"base": make_base(root / "masked", "bert"), "dataset": dataset, "kind": "masked"}
    jobs = list(READERS.values())
    one = launch(root / "readers-one", jobs, processes=1, zero=None, **where)
    two = launch(root / "readers-two", jobs, processes=2, zero=3, **where)
    for number in range(len(jobs)):
        words = [run.run.artifact(number)["recipe"]["task"]["labels"] for run in (one, two)]
        assert words[0] == words[1], words
        assert one.run.artifact(number)["words"] == two.run.artifact(number)["words"]
    worst = max(largest_difference(one.run, two.run, number) for number in range(len(jobs)))
    return [[name, "ZeRO-3, BERT", *_row(one, two, number)] for number, name in enumerate(READERS)], worst


def _row(one: Launched, two: Launched, number: int = 0) -> list[str]:
    losses = two.run.losses(number)
    return [
        f"{losses[1]:.6f}",
        f"{losses[max(losses)]:.6f}",
        f"{largest_difference(one.run, two.run, number):.1e}",
        f"{_prompt_difference(one.run, two.run, number):.1e}",
        f"{one.seconds:.0f} / {two.seconds:.0f}",
    ]


def _prompt_difference(one: MadeRun, two: MadeRun, number: int) -> float:
    expected, found = (load_file(run.jobs[number].artifact(1) / "prompt.safetensors") for run in (one, two))
    return max(
        float((found[name] - tensor).abs().max() / tensor.abs().max().clamp_min(torch.finfo().tiny))
        for name, tensor in expected.items()
    )


if __name__ == "__main__":
    sys.exit(main())
