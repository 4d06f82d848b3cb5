"""The filter language: what it finds, agrees with Python; what it does not understand, it says."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from queue_helpers import add_jobs, open_registry

from orchestrator.data.where import parse
from orchestrator.errors import BadInput
from orchestrator.registry import metrics, search
from orchestrator.registry.metrics import Point
from orchestrator.registry.storage.engine import Registry
from orchestrator.registry.storage.tables import jobs, latest_metrics

METHODS = ("prefix-tuning", "prompt-tuning", "p-tuning")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Twelve jobs: methods by turns, bleu = 10 x id on test rows for the odd ones, on validation rows for all."""
    registry = open_registry(tmp_path_factory.mktemp("home"))
    ids = add_jobs(registry, 12)
    with registry.write() as conn:
        for job in ids:
            method = METHODS[job % 3]
            recipe = conn.execute(sa.select(jobs.c.recipe).where(jobs.c.id == job)).scalar_one()
            recipe = recipe | {"method": {"type": method, "length": job}, "train": {"lr": job / 1000, "seeds": [1]}}
            values: dict[str, Any] = {"method": method, "seed": job % 2, "name": f"job-{job}_x%", "recipe": recipe}
            conn.execute(sa.update(jobs).where(jobs.c.id == job).values(values | {"user": "ann" if job < 4 else "bob"}))
            points = [Point("validation", "bleu", step, float(job + step)) for step in (1, 2)]
            points += [Point("test", "bleu", 3, 10.0 * job)] if job % 2 else []
            metrics.put(conn, job, points)
    yield registry
    registry.close()


def found(registry: Registry, where: str, *sort: str, limit: int | None = None) -> list[int]:
    with registry.read() as conn:
        return search.find(conn, where, sort, limit=limit).ids


def bleu(job: int) -> float:
    return 10.0 * job if job % 2 else job + 2.0


CASES: dict[str, Callable[[int], bool]] = {
    "": lambda j: True,
    "method=prefix-tuning": lambda j: j % 3 == 0,
    "method==prefix-tuning and metrics.bleu>60": lambda j: j % 3 == 0 and bleu(j) > 60,
    "metrics.validation.bleu >= 8": lambda j: j + 2 >= 8,
    "metrics.test.bleu = none": lambda j: j % 2 == 0,
    "metrics.test.bleu != none": lambda j: j % 2 == 1,
    "metrics.rouge_l > 0": lambda j: False,
    "not method=p-tuning": lambda j: j % 3 != 2,
    "user=ann or user=bob and seed=1": lambda j: j < 4 or j % 2 == 1,
    "(user=ann or user=bob) and seed=1": lambda j: j % 2 == 1,
    "user = 'ann'": lambda j: j < 4,
    "id in (2, 3, 77)": lambda j: j in {2, 3},
    "method in (prefix-tuning, p-tuning)": lambda j: j % 3 != 1,
    "name ~ job-1*": lambda j: j in {1, 10, 11, 12},
    "name~'b-2_X%'": lambda j: j == 2,
    "name~%": lambda j: True,
    "name~z": lambda j: False,
    "recipe.method.length < 4": lambda j: j < 4,
    "recipe.train.lr = 5e-3": lambda j: j == 5,
    "recipe.method.type ~ prompt": lambda j: j % 3 == 1,
    "recipe.train.seeds.0 = 1": lambda j: True,
    "recipe.no.such != none": lambda j: False,
    "dataset=rows and dataset=rows@1": lambda j: True,
    "dataset=rows@2": lambda j: False,
    "base=tiny and state=queued and result=none": lambda j: True,
    "submitted > 1h and submitted >= 2001-01-01": lambda j: True,
    "submitted < 1h": lambda j: False,
    "artifact=none and group=none": lambda j: True,
}


@pytest.mark.parametrize("where", CASES)
def test_filters_agree_with_python(registry: Registry, where: str) -> None:
    assert found(registry, where) == [j for j in range(12, 0, -1) if CASES[where](j)]


def test_sorting(registry: Registry) -> None:
    assert found(registry, "", "-metrics.bleu") == sorted(range(1, 13), key=lambda j: (-bleu(j), -j))
    assert found(registry, "", "method", "id") == sorted(range(1, 13), key=lambda j: (METHODS[j % 3], j))
    without = [2, 4, 6, 8, 10, 12]
    assert found(registry, "", "-metrics.test.bleu")[6:] == without[::-1]
    assert found(registry, "", "metrics.test.bleu")[6:] == without[::-1]
    with registry.read() as conn:
        few = search.find(conn, "seed=1", ["id"], limit=2)
        assert (few.ids, few.total) == ([1, 3], 6)
        assert search.find(conn, "seed=1", ["id"], ids=[3, 4, 5]).ids == [3, 5]
        assert search.values(conn, [3], ["metrics.bleu", "recipe.train.lr", "user"]) == {
            3: {"metrics.bleu": 30.0, "recipe.train.lr": 0.003, "user": "ann"}
        }


NOT_UNDERSTOOD = {
    "metod=x": "did you mean 'method'?",
    "method": "expected after 'method'",
    "method=": "a value is expected",
    "= x": "a name such as metrics.bleu",
    "method=x and": "a name such as",
    "method=x method=y": "`and`, `or` or the end",
    "(method=x": "`)` is expected",
    "method in x": "`(` is expected after `in`",
    "method in (x": "`,` or `)`",
    "name='x": "a quote is not closed",
    "a=1; drop table jobs": "`and`, `or` or the end",
    "mehtod=1": "did you mean 'method'?",
    "metrics.a.b.c=1": "there is no field",
    "seed=many": "seed is a number",
    "submitted>noon": "is a moment",
    "metrics.dev.bleu>1": "there is no split 'dev'",
    "seed<none": "larger or smaller than none",
    "(" * 60 + "id=1" + ")" * 60: "too many brackets",
    "id=1 !": "not understood",
}


@pytest.mark.parametrize("where", NOT_UNDERSTOOD)
def test_what_is_not_understood_is_said(registry: Registry, where: str) -> None:
    with pytest.raises(BadInput) as caught:
        found(registry, where)
    assert NOT_UNDERSTOOD[where] in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("ab.1=<>~!()'\" ,\\%;-in"), max_size=24))
def test_any_text_is_a_filter_or_bad_input(text: str) -> None:
    with contextlib.suppress(BadInput):
        assert parse(text) == parse(text)


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12))
def test_quoted_text_is_compared_never_run(text: str) -> None:
    quoted = "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    parsed = parse(f"name={quoted}")
    assert parsed.values == (text,)  # type: ignore[union-attr]


def test_the_newest_points_are_kept_beside(registry: Registry) -> None:
    """`latest_metrics` is what a search through all points would find, whatever the order of writes."""
    with registry.write() as conn:
        for job, (first, second) in enumerate(itertools.permutations([3, 7, 5], 2), start=1):
            metrics.put(conn, job, [Point("train", "loss", first, 1.0 * first), Point("train", "acc", 1, None)])
            metrics.put(conn, job, [Point("train", "loss", second, 1.0 * second)])
        newest = sa.text(
            "SELECT job_id, split, name, step, value FROM metrics m WHERE step = (SELECT max(step) FROM metrics "
            "WHERE job_id = m.job_id AND split = m.split AND name = m.name) ORDER BY 1, 2, 3"
        )
        kept = conn.execute(sa.select(latest_metrics).order_by("job_id", "split", "name")).all()
        assert [tuple(row) for row in kept] == [tuple(row) for row in conn.execute(newest)]
        conn.execute(sa.delete(latest_metrics).where(latest_metrics.c.split == "train"))
