"""A row of the proof of learning: a recipe with all its seeds, and what a paper says of two of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

from tests.benchmarks.report import real_data

Settings = dict[str, Any]

SEEDS = (1, 2, 3)
ONE = SEEDS[:1]  #: where nothing is drawn

DESIGN: Settings = {"type": "prompt-design"}
FINE_TUNING: Settings = {"type": "fine-tuning"}
LORA: Settings = {"type": "lora"}

#: Methods whose jobs have the base for themselves.
ALONE = ("fine-tuning", "lora", "lm-adapt", "autoprompt", "pet")


@dataclass(frozen=True)
class Plan:
    """One row of a table."""

    part: str
    row: str
    base: str
    dataset: str
    task: Settings
    method: Settings
    train: Settings = field(default_factory=dict)
    seeds: tuple[int, ...] = SEEDS
    #: rows whose trained prompts this one's starts from: the mean of those of the same seed
    starts: tuple[Plan, ...] = ()
    shown: str = ""  #: the score of the tables; default: the task's first
    ensemble: str = ""  #: no job, but the prompts of all seeds asked together

    @property
    def name(self) -> str:
        """Made of what the recipe says: equal rows of two tables are trained once, a changed row anew."""
        digest = hashlib.sha256(json.dumps(self._said(), sort_keys=True).encode()).hexdigest()[:10]
        name = f"{self.dataset}-{self.method['type']}-{digest}"
        return f"{name}-{self.ensemble}" if self.ensemble else name

    @property
    def alone(self) -> bool:
        """Whether its jobs have the base for themselves."""
        return self.method["type"] in ALONE or "base_lr" in self.train

    def recipe(self, seed: int) -> Settings:
        said, task = self._said(), self.task
        if "vocabulary" in task:  # wherever the data lies, the row is the same
            task = task | {"vocabulary": str(real_data("lama") / task["vocabulary"])}
        if self.starts:
            aliases = [start.alias(seed) for start in self.starts]
            said["method"] = self.method | {"init": {"type": "artifact", "artifact": aliases}}
        return {"name": f"{self.name}-seed-{seed}", **said, "task": task, "train": said["train"] | {"seed": seed}}

    def members(self) -> Plan:
        """Of an ensemble: the row whose prompts it asks."""
        return replace(self, ensemble="", seeds=SEEDS)

    def alias(self, seed: int) -> str:
        """Under which another row's recipe names what this one has trained."""
        return f"{self.name}@seed-{seed}"

    def _said(self) -> Settings:
        train = {"baseline": False, "eval_batch_size": 64, "checkpoint_every": 1000, **self.train}
        method = self.method | ({"init": [start.name for start in self.starts]} if self.starts else {})
        return {"base": self.base, "dataset": self.dataset, "task": self.task, "method": method, "train": train}

    def quick(self) -> Plan:
        """Two steps of it, one seed."""
        train = self.train | ({"steps": 2, "warmup": 0} if "steps" in self.train else {})
        return replace(self, train=train, seeds=self.seeds[:1], starts=tuple(start.quick() for start in self.starts))


@dataclass(frozen=True)
class Claim:
    """What a paper says: the first scores more than the second (or, `same`: no less)."""

    paper: str
    more: Plan
    less: Plan
    same: bool = False
