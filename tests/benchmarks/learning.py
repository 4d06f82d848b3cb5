"""Every method on real data with several seeds, beside the untuned base and fine-tuning; the papers' ablations.

make proof-learning                                         (about an hour on two idle cores; goes on where it was cut)
python -m tests.benchmarks.learning FOLDER                     (the home to keep; default: proofs/learning)
python -m tests.benchmarks.learning --only "LAMA P103"         (rows of one part; writes nothing)
python -m tests.benchmarks.learning FOLDER --quick             (two steps of everything in FOLDER-quick; writes nothing)

All jobs are submitted at once; the worker puts those on one base into one run. A row is a recipe whose name is made
of what it says, so a row that has been changed is trained anew and no other.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.benchmarks.learning_data import add_bases, add_data
from tests.benchmarks.learning_ensembles import FOLDER as ENSEMBLES
from tests.benchmarks.learning_ensembles import score_ensembles
from tests.benchmarks.learning_page import Results, console_lines, write_learning
from tests.benchmarks.learning_plan import Plan
from tests.benchmarks.learning_rows import adaptations, all_rows, needed
from tests.benchmarks.report import REPOSITORY, ptq


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    quick = bool(options.quick)
    home = Path(f"{options.folder}-quick" if quick else options.folder).resolve()
    home.mkdir(parents=True, exist_ok=True)
    ptq(home, "init")
    add_data(home)
    plans = needed(plan for plan in all_rows() if plan.part.startswith(options.only))
    wanted = {plan.base for plan in plans}
    adapted = {name: plan for name, plan in adaptations().items() if name in wanted}
    add_bases(home, wanted | {plan.base for plan in adapted.values()}, quick=quick)
    if quick:
        plans, adapted = [plan.quick() for plan in plans], {name: plan.quick() for name, plan in adapted.items()}
    _work(home, adapted.values(), slots=options.slots)
    _add_adapted(home, adapted)
    jobs = [plan for plan in plans if not plan.ensemble]
    _work(home, [plan for plan in jobs if not plan.starts], slots=options.slots)
    _name_starts(home, jobs)
    _work(home, [plan for plan in jobs if plan.starts], slots=options.slots)
    if not quick:  # of one seed
        score_ensembles(home, plans)
    results = _results(home)
    if quick or options.only:
        print("\n".join(console_lines(plans, results)))
        return 0
    return write_learning(home, plans, results)


def _options(arguments: Sequence[str]) -> Namespace:
    parser = ArgumentParser(prog="python -m tests.benchmarks.learning", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "folder", nargs="?", default=str(REPOSITORY / "proofs" / "learning"), help="the home, which is kept"
    )
    parser.add_argument("--only", default="", metavar="PART", help="rows whose part begins so")
    parser.add_argument("--quick", action="store_true", help="two steps of everything, one seed")
    parser.add_argument("--slots", type=int, default=2, help="runs at a time, which share the cores")
    return parser.parse_args(arguments)


def queue(home: Path, plans: Iterable[Plan]) -> bool:
    """Queue what has neither succeeded nor is on its way; whether there is anything to do."""
    # Jobs of one base in a row, and those that share a run first: one that waits for a slot holds up who could join.
    inline = sorted(plans, key=lambda plan: (plan.alone, plan.base))
    recipes = {recipe["name"]: recipe for recipe in (plan.recipe(seed) for plan in inline for seed in plan.seeds)}
    jobs = json.loads(ptq(home, "status", "--all", "--json", capture=True))["jobs"]
    waiting = [job for job in jobs if job["state"] != "finished"]
    there = {job["name"] for job in jobs if job["result"] == "succeeded"} | {job["name"] for job in waiting}
    files = []
    for name, recipe in recipes.items():
        if name not in there:
            files.append(home / "recipes" / f"{name}.yaml")
            files[-1].parent.mkdir(exist_ok=True)
            files[-1].write_text(json.dumps(recipe, ensure_ascii=False), encoding="utf-8")
    if files:
        ptq(home, "submit", *map(str, files))
    return bool(files or waiting)


def _work(home: Path, plans: Iterable[Plan], *, slots: int) -> None:
    if queue(home, plans):
        ptq(home, "worker", "--cpu-slots", str(slots), "--until-idle")


def _add_adapted(home: Path, adapted: dict[str, Plan]) -> None:
    there = {one["name"] for one in json.loads(ptq(home, "base", "list", "--json", capture=True))}
    made = {one["job_name"]: one for one in json.loads(ptq(home, "artifact", "list", "--json", capture=True))}
    for name, plan in adapted.items():
        if name not in there:
            ptq(home, "base", "add", name, made[plan.recipe(plan.seeds[0])["name"]]["ref"])


def _name_starts(home: Path, plans: Iterable[Plan]) -> None:
    """Give each prompt that another row starts from the alias that its recipe names."""
    there = {one["name"] for one in json.loads(ptq(home, "artifact", "aliases", "--json", capture=True))}
    made = {one["job_name"]: one for one in json.loads(ptq(home, "artifact", "list", "--json", capture=True))}
    sources = [(source, seed) for plan in plans for source in plan.starts for seed in plan.seeds]
    for alias, job in {source.alias(seed): source.recipe(seed)["name"] for source, seed in sources}.items():
        if alias not in there:
            ptq(home, "artifact", "alias", alias, made[job]["ref"])


def _results(home: Path) -> Results:
    """Plan's name -> seed -> artifact.json."""
    found: Results = {}
    for artifact in json.loads(ptq(home, "artifact", "list", "--json", capture=True)):
        facts = json.loads((Path(artifact["path"]) / "artifact.json").read_text(encoding="utf-8"))
        found.setdefault(facts["name"].partition("-seed-")[0], {})[facts["seed"]] = facts
    for path in sorted((home / ENSEMBLES).glob("*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        found[facts["name"]] = {facts["seed"]: facts}
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
