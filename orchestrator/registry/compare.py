"""Several jobs side by side: what differs between them, mean and spread over seeds, and whether a difference is chance.

Jobs whose recipes differ in nothing but the seed are one configuration. Two configurations are compared on the seeds
that both have, and all jobs by their scores on the rows of one split.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import BadInput
from orchestrator.recipe.schema import JobRecipe
from orchestrator.recipe.scores import TELLING, smaller_is_better
from orchestrator.registry.jobs import Job

#: 2^16 sign patterns take a tenth of a second; beyond that the first 16 common seeds are not the whole truth.
MOST_PAIRS = 16
#: Parts of a recipe that change neither data, nor model, nor training.
_SILENT = (
    "name", "description", "resources", "sweep", "tracking", "train.seeds", "train.gradient_checkpointing",
    "dataset", "base",
)  # fmt: skip
#: Recipes of an older time have none: that alone is no difference.
_DIGESTS = ("task.vocabulary_digest", "method.init.digest", "method.init.digests")


@dataclass(frozen=True)
class Configuration:
    settings: dict[str, Any]  #: dotted key -> value, of the keys that differ
    jobs: dict[int, int]  #: seed -> job
    values: dict[str, dict[int, float]]  #: metric -> seed -> value

    def mean(self, metric: str) -> float | None:
        found = self.values.get(metric)
        return statistics.fmean(found.values()) if found else None

    def deviation(self, metric: str) -> float | None:
        """Of a sample (divided by n - 1); None below two seeds."""
        found = self.values.get(metric, {})
        return statistics.stdev(found.values()) if len(found) > 1 else None

    def best(self, metric: str) -> tuple[int, float] | None:
        """(seed, value) of the best seed, of equal ones the smallest; None where no seed has the metric."""
        found = self.values.get(metric)
        if not found:
            return None
        seed = min(found, key=lambda seed: (found[seed] if smaller_is_better(metric) else -found[seed], seed))
        return seed, found[seed]


@dataclass(frozen=True)
class Paired:
    """One configuration against another on the seeds that both have."""

    seeds: int
    difference: float  #: mean of the differences
    p: float | None  #: see `sign_flip_p`; None below two pairs


@dataclass(frozen=True)
class Comparison:
    keys: list[str]  #: the settings that differ
    metrics: list[str]
    configurations: list[Configuration]  #: best first, by the first metric
    split: str  #: on whose rows all values are
    elsewhere: list[int]  #: jobs that were scored, but not on those rows


def compare(
    jobs: Sequence[Job], numbers: Mapping[int, Mapping[str, Mapping[str, float | None]]], metric: str | None = None
) -> Comparison:
    """`numbers`: job -> split -> metric -> value. Raises BadInput when no job has the metric."""
    flat = {job.id: _settings(job) for job in jobs}
    keys = [key for key in dict.fromkeys(itertools.chain(*flat.values())) if _differs(key, flat.values())]
    split = _common_split(numbers, metric)
    scored = {job: _known(splits.get(split, {})) for job, splits in numbers.items()}
    found: dict[str, Configuration] = {}
    for job in sorted(jobs, key=lambda job: job.id):
        settings = {key: flat[job.id].get(key) for key in keys}
        one = found.setdefault(repr(settings), Configuration(settings, {}, {}))
        _enter(one, job, scored.get(job.id, {}))
    names = _metrics(jobs, found.values(), metric)
    elsewhere = [job.id for job in jobs if not scored.get(job.id) and _scored_on(numbers.get(job.id, {}), metric)]
    ranked = sorted(found.values(), key=lambda one: _rank(one, names[0]))
    return Comparison(keys, names, ranked, split, sorted(elsewhere))


def _enter(one: Configuration, job: Job, scores: Mapping[str, float]) -> None:
    """Of several jobs with one seed the newest that was scored counts, with its own scores alone."""
    if not scores and any(job.seed in known for known in one.values.values()):
        return
    one.jobs[job.seed] = job.id
    for known in one.values.values():
        known.pop(job.seed, None)
    for name, value in scores.items():
        one.values.setdefault(name, {})[job.seed] = value


def paired(one: Configuration, other: Configuration, metric: str) -> Paired | None:
    """`one` minus `other`; None when no seed has both."""
    left, right = one.values.get(metric, {}), other.values.get(metric, {})
    differences = [left[seed] - right[seed] for seed in sorted(set(left) & set(right))]
    if not differences:
        return None
    enough = 2 <= len(differences) <= MOST_PAIRS
    return Paired(len(differences), statistics.fmean(differences), sign_flip_p(differences) if enough else None)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Exact two-sided p of the paired permutation test (Fisher 1935, "The Design of Experiments", §21).

    If the two do not differ, each difference could as well have had the other sign: p is the share of the 2^n sign
    patterns whose mean lies as far from 0 as the observed one or farther. The smallest p that n pairs can give is
    2 / 2^n: 0.25 with 3 seeds, 0.0625 with 5, 0.002 with 10.
    """
    observed = abs(math.fsum(differences))
    # Sums of the same numbers in another order may differ in the last bits.
    slack = 1e-12 * math.fsum(map(abs, differences))
    patterns = itertools.product((1, -1), repeat=len(differences) - 1)  # the other half is their mirror image
    sums = (
        abs(math.fsum([differences[0], *(s * d for s, d in zip(signs, differences[1:], strict=True))]))
        for signs in patterns
    )
    return sum(total >= observed - slack for total in sums) / 2 ** (len(differences) - 1)


def _settings(job: Job) -> dict[str, Any]:
    """The recipe as dotted keys, and what its names stood for when it was submitted."""
    flat = dict(_flattened(_whole(job.recipe)))
    kept = {key: value for key, value in flat.items() if not any(_within(key, silent) for silent in _SILENT)}
    return {"base": job.base["id"], "base.fingerprint": job.base["fingerprint"], "dataset": job.dataset} | kept


def _whole(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the keys that recipes have got since it was stored; as it stands if it is of another time altogether."""
    try:
        return JobRecipe.model_validate(recipe).model_dump(mode="json")
    except ValidationError:
        return recipe


def _within(key: str, outer: str) -> bool:
    return key == outer or key.startswith(f"{outer}.")


def _flattened(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _flattened(part, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _differs(key: str, flat: Iterable[Mapping[str, Any]]) -> bool:
    found = {repr(one.get(key)) for one in flat}
    return len(found - {repr(None)} if key in _DIGESTS else found) > 1


def _common_split(numbers: Mapping[int, Mapping[str, Mapping[str, float | None]]], metric: str | None) -> str:
    """The split by whose rows all are compared: scores on different rows do not stand side by side."""
    on = [_scored_on(splits, metric) for splits in numbers.values()]
    return max(TELLING, key=lambda split: sum(split in found for found in on))  # of equal ones the first


def _scored_on(splits: Mapping[str, Mapping[str, float | None]], metric: str | None) -> list[str]:
    return [split for split in TELLING if (known := _known(splits.get(split, {}))) and (not metric or metric in known)]


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _metrics(jobs: Sequence[Job], found: Iterable[Configuration], metric: str | None) -> list[str]:
    there = list(dict.fromkeys(name for one in found for name in one.values))
    if metric is not None:
        if metric not in there:
            what = f"they have {', '.join(there)}" if there else "none has been evaluated yet"
            raise BadInput(f"none of these jobs has the metric {metric!r}", where="--metric", hint=what)
        return [metric]
    if not there:
        raise BadInput("none of these jobs has been evaluated yet", hint="see `ptq status`")
    wanted = dict.fromkeys(name for job in jobs for name in job.recipe.get("task", {}).get("metrics", []))
    return [name for name in wanted if name in there] + [name for name in there if name not in wanted]


def _rank(one: Configuration, metric: str) -> tuple[bool, float]:
    mean = one.mean(metric)
    return (mean is None, 0.0 if mean is None else mean if smaller_is_better(metric) else -mean)
