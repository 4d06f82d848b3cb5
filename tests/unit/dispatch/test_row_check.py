"""Rows that a task cannot use are refused at submit, by split and number, not when their turn comes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.data.store import SplitWriter
from orchestrator.dispatch.row_check import RowCheck
from orchestrator.recipe.schema import JobRecipe

TAG = {"type": "tag", "labels": ["O", "B-X"]}
SPAN = {"type": "span"}
SOFT = {"type": "classify", "input": "{text}", "labels": ["a", "b"], "head": {}, "soft": "{soft}"}

TAGGED = [{"tokens": "red cat", "tags": "O B-X"}, {"tokens": '["cat"]', "tags": '["O"]'}]
ASKED = [
    {"question": "who", "context": "the red cat", "answers": '{"text": ["red cat"], "answer_start": [4]}'},
    {"question": "who", "context": "the red cat", "answers": '{"text": ["cat"], "answer_start": [1]}'},
]
TOLD = [{"text": "x", "label": "a", "soft": '{"a": 0.9, "b": 0.1}'}]


def faults(task: dict[str, Any], folder: Path, **splits: list[dict[str, str]]) -> list[str]:
    for split, rows in splits.items():
        writer = SplitWriter(folder / f"{split}.arrow", list(rows[0]))
        for row in rows:
            writer.add(list(row.values()))
        writer.close()
    data: Any = SimpleNamespace(ref="d@1", splits={name: len(rows) for name, rows in splits.items()}, path=folder)
    train = {"steps": 1, "lr": 1}
    raw = {"name": "n", "base": "b", "dataset": "d", "task": task, "method": {"type": "head"}, "train": train}
    return RowCheck().faults(JobRecipe.model_validate(raw), data)


@pytest.mark.parametrize(("task", "rows"), [(TAG, TAGGED), (SPAN, ASKED), (SOFT, TOLD)])
def test_good_rows(task: dict[str, Any], rows: list[dict[str, str]], tmp_path: Path) -> None:
    assert faults(task, tmp_path, train=rows, validation=rows) == []


@pytest.mark.parametrize("split", ["train", "validation"])
def test_words_without_tags(split: str, tmp_path: Path) -> None:
    bad = {"tokens": "a red cat", "tags": "O O"}
    splits = {"train": TAGGED, split: [*TAGGED, bad, bad, TAGGED[0], bad]}
    assert faults(TAG, tmp_path, **splits) == [
        f"task.tags: d@1, {split} row 3: a row has 3 words and 2 tags (2 more such rows); "
        "mend the recipe or the dataset, or add it again without them"
    ]


@pytest.mark.parametrize(
    ("change", "what", "also_scored"),
    [
        ({"answers": "dog"}, "the answer 'dog' does not stand in its context", False),
        ({"answers": "[]"}, "a row has no answer, and task.unanswerable is not true", False),
        ({"answers": '{"texts": ["cat"]}'}, "is no form of answers that is known", True),
    ],
)
def test_answers_that_cannot_be_found(change: dict[str, str], what: str, also_scored: bool, tmp_path: Path) -> None:
    bad = [*ASKED, ASKED[0] | change]
    (fault,) = faults(SPAN, tmp_path, train=bad)
    assert fault.startswith("task.answers: d@1, train row 3: ")
    assert what in fault
    assert bool(faults(SPAN, tmp_path, train=ASKED, validation=bad)) is also_scored


def test_rows_may_have_no_answer_where_the_recipe_says_so(tmp_path: Path) -> None:
    assert faults(SPAN | {"unanswerable": True}, tmp_path, train=[*ASKED, ASKED[0] | {"answers": "[]"}]) == []


def test_probabilities_that_are_none(tmp_path: Path) -> None:
    bad = [*TOLD, TOLD[0] | {"soft": '{"a": 1}'}]
    (fault,) = faults(SOFT, tmp_path, train=bad)
    assert fault.startswith('task.soft: d@1, train row 2: `{"a": 1}` is not a JSON mapping')
    assert faults(SOFT, tmp_path, train=TOLD, validation=bad) == []
