"""A recipe with a sweep and several seeds -> its jobs: every combination of the swept values, with every seed."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from collections import Counter
from typing import Any

from pydantic import ValidationError

from orchestrator.recipe.faults import Fault, Finding, KeyPath, RecipeFaults, dotted
from orchestrator.recipe.fit import recipe_findings
from orchestrator.recipe.messages import boolean_findings, findings
from orchestrator.recipe.overrides import put
from orchestrator.recipe.schema import JobRecipe, Recipe

MOST_JOBS = 1000  # a slip such as seeds: 1..9 in five swept keys would make 59,049
_LONGEST_NAME = 100  # as Recipe.name
_LONGEST_VALUE = 30

_UNSWEPT = {
    "name": "jobs are named by what is swept",
    "sweep": "a sweep holds no sweep",
    "train.seed": "write train.seeds: [1, 2, 3]",
    "train.seeds": "write train.seeds: [1, 2, 3]",
}


def expand(recipe: Recipe) -> list[JobRecipe]:
    """One JobRecipe for each combination and seed, the first swept key changing slowest, seeds fastest.

    Raises RecipeFaults that name the sweep's keys.
    """
    jobs, wrong = combinations(recipe)
    if wrong:
        raise RecipeFaults([Fault("", dotted(finding.path), finding.message) for finding in wrong])
    return jobs


def combinations(recipe: Recipe) -> tuple[list[JobRecipe], list[Finding]]:
    """The jobs, or what is wrong with the sweep and with any of its combinations."""
    wrong = _sweep_findings(recipe)
    if wrong:
        return [], wrong
    plain = recipe.model_dump(exclude_unset=True)
    plain.pop("sweep", None)
    jobs: list[JobRecipe] = []
    for values in itertools.product(*recipe.sweep.values()):
        chosen = dict(zip(recipe.sweep, values, strict=True))
        for seed in recipe.train.seeds:
            job, found = _one(plain, chosen, seed, _name(recipe, chosen, seed))
            wrong += found
            if job is not None:
                jobs.append(job)
            if found:
                break  # another seed would tell the same
    return ([], list(dict.fromkeys(wrong))) if wrong else (_named_apart(jobs), [])


def _one(plain: dict[str, Any], chosen: dict[str, Any], seed: int, name: str) -> tuple[JobRecipe | None, list[Finding]]:
    data = copy.deepcopy(plain)
    for key, value in chosen.items():
        problem = put(data, tuple(key.split(".")), copy.deepcopy(value))
        if problem:
            return None, [Finding(("sweep", key), problem)]
    data.setdefault("train", {})["seeds"] = [seed]
    data["name"] = name
    found = boolean_findings(JobRecipe, data)
    try:
        job = JobRecipe.model_validate(data)
    except ValidationError as error:
        return None, [_blame(finding, chosen) for finding in [*found, *findings(JobRecipe, error)]]
    found += recipe_findings(job)
    return job, [_blame(finding, chosen) for finding in found]


def _blame(finding: Finding, chosen: dict[str, Any]) -> Finding:
    """Say it of the swept key that holds the wrong key, else of the nearest one, else of the key itself."""
    if not chosen:
        return finding
    wrong = dotted(finding.path)
    for key in chosen:
        if wrong == key or wrong.startswith((f"{key}.", f"{key}[")):
            inner = wrong.removeprefix(key).lstrip(".")
            return Finding(("sweep", key), f"{_short(chosen[key])}: {inner + ' ' if inner else ''}{finding.message}")
    for key in chosen:
        if key.startswith(f"{wrong}."):
            return Finding(("sweep", key), f"{_short(chosen[key])}: {wrong} {finding.message}")
    values = ", ".join(f"{key} = {_short(value)}" for key, value in chosen.items())
    near = [key for key in chosen if key.split(".")[0] == wrong.split(".")[0]]
    path: KeyPath = ("sweep", near[0]) if near else ("sweep",)
    return Finding(path, f"with {values}: {wrong}: {finding.message}")


def _sweep_findings(recipe: Recipe) -> list[Finding]:
    found = []
    for key, values in recipe.sweep.items():
        path: KeyPath = ("sweep", key)
        outer = [other for other in recipe.sweep if key.startswith(f"{other}.")]
        if key in _UNSWEPT:
            found.append(Finding(path, f"cannot be swept; {_UNSWEPT[key]}"))
        elif not all(key.split(".")):
            found.append(Finding(path, "is not a dotted key such as method.length"))
        elif outer:
            found.append(Finding(path, f"lies inside `{outer[0]}`, which is swept too"))
        if not values:
            found.append(Finding(path, "has no values"))
        for text, count in Counter(json.dumps(value, sort_keys=True) for value in values).items():
            if count > 1:
                found.append(Finding(path, f"the value {text} stands {count} times"))
    jobs = len(recipe.train.seeds)
    for values in recipe.sweep.values():
        jobs *= len(values)
    if jobs > MOST_JOBS:
        found.append(Finding(("sweep",), f"makes {jobs:,} jobs; {MOST_JOBS:,} at most"))
    return found


def _name(recipe: Recipe, chosen: dict[str, Any], seed: int) -> str:
    """`e2e-prefix-length-20-seed-3`."""
    parts = [recipe.name]
    parts += [f"{key.split('.')[-1]}-{_short(value)}" for key, value in chosen.items()]
    if len(recipe.train.seeds) > 1:
        parts.append(f"seed-{seed}")
    name = "-".join(parts)
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def _short(value: Any) -> str:
    """A swept value as part of a name: a mapping by its type, numbers as they are written, text cut to letters."""
    if isinstance(value, dict) and isinstance(value.get("type"), str):
        value = value["type"]
    text = f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-") if not isinstance(value, int | float) else text
    if not slug or len(slug) > _LONGEST_VALUE:
        slug = f"{slug[: _LONGEST_VALUE - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}".lstrip("-")
    return slug


def _named_apart(jobs: list[JobRecipe]) -> list[JobRecipe]:
    """Two values may have one short form (`a b` and `a-b`): the later ones get a number."""
    names = [job.name for job in jobs]
    if len(set(names)) == len(names):
        return jobs
    return [job.model_copy(update={"name": f"{job.name[:93]}-{index}"}) for index, job in enumerate(jobs, start=1)]
