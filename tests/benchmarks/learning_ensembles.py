"""Rows that ask the prompts of a row's seeds together: by majority vote, or by the mean of their probabilities."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.tasks.metrics import score
from tests.benchmarks import learning_heads as heads
from tests.benchmarks import learning_masks as masks
from tests.benchmarks.learning_plan import ONE, Claim, Plan
from tests.benchmarks.report import ptq

FOLDER = "ensembles"  #: in the home: what they answered, and their scores


def ensemble_rows() -> list[Plan]:
    """Each task's prompts one by one, and together."""
    rows = [*heads.sst2_rows(), *heads.fewglue_rows(), *masks.chinese_rows()]
    wanted = [("SST-2", "prompt tuning, n 10"), ("FewGLUE CB", "prompt tuning, n 10"), ("EPRSTMT", "P-tuning, n 4")]
    found = []
    for part, row in wanted:
        one = next(plan for plan in rows if (plan.part, plan.row) == (part, row))
        found.append(replace(one, part="ensemble", row=f"{part}, one prompt"))
        for how in ("vote", "mean"):
            found.append(replace(one, part="ensemble", row=f"{part}, {how} of three", ensemble=how, seeds=ONE))
    return found


def ensemble_claims() -> list[Claim]:
    rows = ensemble_rows()
    return [
        Claim(f"ensemble, {vote.row.partition(',')[0]}: a vote beats one prompt (Lester: 91.3, 90.5)", vote, one)
        for one, vote in zip(rows[0::3], rows[1::3], strict=True)
    ]


def score_ensembles(home: Path, plans: Iterable[Plan]) -> None:
    made = {one["job_name"]: one["ref"] for one in json.loads(ptq(home, "artifact", "list", "--json", capture=True))}
    for plan in plans:
        path = home / FOLDER / f"{plan.name}.json"
        if plan.ensemble and not path.exists():
            path.parent.mkdir(exist_ok=True)
            members = plan.members()
            facts = _asked(home, plan, [made[members.recipe(seed)["name"]] for seed in members.seeds])
            path.write_text(json.dumps(facts), encoding="utf-8")


def _asked(home: Path, plan: Plan, artifacts: list[str]) -> dict[str, Any]:
    output = home / FOLDER / f"{plan.name}.jsonl"
    rows = home / f"{plan.dataset}-validation.jsonl"
    ptq(home, "predict", *artifacts, "--ensemble", plan.ensemble, "--input", str(rows), "--output", str(output))
    answered = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    metrics = plan.task.get("metrics", ["accuracy"])
    wanted = [[str(row["label"])] for row in answered]
    labels = sorted(map(str, plan.task["labels"]))
    scores = score(metrics, [row["prediction"] for row in answered], wanted, labels=labels)
    trained = sum(_trained(home, artifact) for artifact in artifacts)
    return {"name": plan.name, "seed": 1, "metrics": {"validation": scores}, "trained_parameters": trained}


def _trained(home: Path, artifact: str) -> int:
    shown = json.loads(ptq(home, "artifact", "show", artifact, "--json", capture=True))
    facts = json.loads((Path(shown["path"]) / "artifact.json").read_text(encoding="utf-8"))
    return int(facts["trained_parameters"])
