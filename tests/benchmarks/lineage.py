"""Real data -> jobs -> artifacts -> reproduced: E2E, SST-2 and EPRSTMT on the demo's base, fp32 on the CPU.

make proof-lineage
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

import orchestrator
from tests.benchmarks.report import ptq, real_data, write_page

BASE = Path(orchestrator.__file__).parent / "demo" / "base"
TRAIN = {"steps": 20, "batch_size": 4, "lr": 0.01, "baseline": False}


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / "home"
        ptq(home, "base", "add", "small", str(BASE))
        rows, faults = [], 0
        for job, (dataset, recipe) in enumerate(_recipes(home, Path(name)).items(), start=1):
            ptq(home, "submit", str(recipe))
            ptq(home, "worker", "--cpu-slots", "1", "--until-idle")
            ptq(home, "artifact", "alias", f"{dataset}@first", str(job))
        for job in range(1, len(_DATA) + 1):
            ptq(home, "reproduce", str(job))
        ptq(home, "worker", "--cpu-slots", "1", "--until-idle")
        for job, dataset in enumerate(_DATA, start=1):
            found = json.loads(ptq(home, "reproduce", str(job), "--check", "--json", capture=True))
            graph = json.loads(ptq(home, "lineage", f"{dataset}@first", "--json", capture=True))
            chain = " -> ".join([*_keys(graph, "dataset"), *_keys(graph, "job"), *_keys(graph, "artifact")])
            digest = json.loads(ptq(home, "dataset", "show", dataset, "--rows", "0", "--json", capture=True))["digest"]
            faults += not found["same"]
            same = "the same, bit for bit" if found["same"] else "another prompt"
            rows.append([dataset, digest[7:19], chain, same])
    text = (
        f"One job of {TRAIN['steps']} steps on each dataset (all rows to train on, a sample to evaluate on), submitted "
        "again by `ptq reproduce`; what is compared is every tensor of the artifact."
    )
    write_page("lineage", "Lineage and reproduction", "make proof-lineage", text, _COLUMNS, rows)
    return 1 if faults else 0


_COLUMNS = ["dataset", "digest of all rows", "lineage", "prompt of the reproduced job"]


def _e2e(home: Path) -> dict[str, Any]:
    folder = real_data("e2e")
    files = ["--train", str(folder / "src1_train.lines00001-20000.txt"), "--validation", str(folder / "src1_valid.txt")]
    ptq(home, "dataset", "add", "e2e-all", *files, "--delimiter", "||", "--columns", "source,target")
    ptq(home, "dataset", "derive", "e2e", "e2e-all", "--sample", "16", "--of", "validation")
    task = {"type": "generate", "input": "{source}", "target": "{target}", "max_new_tokens": 8}
    return {"task": task, "method": {"type": "prefix-tuning", "length": 5}}


def _sst2(home: Path) -> dict[str, Any]:
    folder = real_data("sst2")
    files = [f"--{split}={folder / f'stsa.binary.{name}'}" for split, name in _SST2.items()]
    ptq(home, "dataset", "add", "sst2-all", *files, "--format", "delimited", "--delimiter", " ", "--columns",
        "label,sentence", "--split-first")  # fmt: skip
    ptq(home, "dataset", "derive", "sst2", "sst2-all", "--sample", "32", "--of", "validation")
    labels = {"0": ["bad"], "1": ["good"]}
    task = {
        "type": "classify",
        "input": "{sentence} it was",
        "labels": labels,
        "separator": " ",
        "max_input_tokens": 64,
    }
    return {"task": task, "method": {"type": "prompt-tuning", "length": 5}}


def _eprstmt(home: Path) -> dict[str, Any]:
    folder = real_data("zh") / "eprstmt"
    files = ["--train", str(folder / "train_0.json"), "--validation", str(folder / "dev_0.json")]
    ptq(home, "dataset", "add", "eprstmt", *files, "--format", "jsonl", "--keep", "sentence,label")
    labels = {"Positive": ["good"], "Negative": ["bad"]}
    task = {"type": "classify", "input": "[P:3] {sentence}", "labels": labels, "separator": " ", "max_input_tokens": 64}
    return {"task": task, "method": {"type": "p-tuning"}}


_SST2 = {"train": "train", "validation": "dev"}
_DATA = {"e2e": _e2e, "sst2": _sst2, "eprstmt": _eprstmt}


def _recipes(home: Path, folder: Path) -> dict[str, Path]:
    made = {}
    for dataset, parts in _DATA.items():
        train = {**TRAIN, "eval_rows": 8}
        recipe = {"name": dataset, "base": "small", "dataset": dataset, "train": train, **parts(home)}
        made[dataset] = folder / f"{dataset}.yaml"
        made[dataset].write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    return made


def _keys(graph: dict[str, Any], kind: str) -> list[str]:
    """The parent of a derived dataset stands first: its job comes of the child."""
    found = [str(node["key"]) for node in graph["nodes"] if node["kind"] == kind]
    return [f"{kind} {key}" for key in sorted(found, key=lambda key: "-all" not in key)]


if __name__ == "__main__":
    sys.exit(main())
