"""New rows from a version's rows: filtered, sampled, divided, rewritten. Rows are streamed; memory does not grow.

An operation is a plain record, so that it can be kept and done again: {"do": "filter", "where": "label=positive"},
{"do": "sample", "split": "train", "rows": 100, "seed": 1}, {"do": "split", "fractions": [0.9, 0.1], "seed": 0},
{"do": "map", "fields": {"text": "{title}: {body}"}, "keep": ["text", "label"]}.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.data import store
from orchestrator.data.splits import SplitPlan, assign
from orchestrator.data.where import All, AnyOf, Compare, Condition, Not, parse
from orchestrator.errors import BadInput

Row = tuple[str, tuple[str, ...]]  #: split, values
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


@dataclass(frozen=True)
class Parent:
    folder: Path
    fields: tuple[str, ...]
    splits: Mapping[str, int]

    def rows(self) -> Iterator[Row]:
        for split in self.splits:
            for values in store.read_rows(self.folder, split):
                yield split, values


def derived(parent: Parent, operation: Mapping[str, Any]) -> tuple[tuple[str, ...], Iterator[Row]]:
    """(fields, rows) of the new version. Raises BadInput for what the parent has no place for."""
    do = operation["do"]
    if do == "filter":
        keeps = filter_of(str(operation["where"]), parent.fields)
        return parent.fields, (row for row in parent.rows() if keeps(row[1]))
    if do == "sample":
        return parent.fields, _sampled(parent, str(operation["split"]), int(operation["rows"]), int(operation["seed"]))
    if do == "split":
        plan = SplitPlan(tuple(operation["fractions"]), int(operation["seed"]))
        return parent.fields, _divided(parent, plan)
    if do == "map":
        return _mapped(parent, operation["fields"], operation.get("keep"))
    raise BadInput(f"there is no operation {do!r}")


def filter_of(where: str, fields: Sequence[str]) -> Callable[[Sequence[str]], bool]:
    """A test of a row's values. Texts are compared as texts, with < and > as numbers. Raises BadInput."""
    return _compiled(parse(where), {name: number for number, name in enumerate(fields)})


def _compiled(condition: Condition, columns: Mapping[str, int]) -> Callable[[Sequence[str]], bool]:
    if isinstance(condition, Not):
        inner = _compiled(condition.inner, columns)
        return lambda row: not inner(row)
    if isinstance(condition, All | AnyOf):
        parts = [_compiled(part, columns) for part in condition.parts]
        every = all if isinstance(condition, All) else any
        return lambda row: every(part(row) for part in parts)
    if condition.field not in columns:
        raise BadInput(
            f"the rows have no field {condition.field!r}", where="--where", hint=f"they have: {', '.join(columns)}"
        )
    return _comparison(condition, columns[condition.field])


def _comparison(wanted: Compare, column: int) -> Callable[[Sequence[str]], bool]:
    values, first = frozenset(wanted.values), wanted.values[0]
    if wanted.operator in {"=", "in"}:
        return lambda row: row[column] in values
    if wanted.operator == "!=":
        return lambda row: row[column] not in values
    if wanted.operator == "~":
        pattern = _glob(first)
        return lambda row: pattern.search(row[column]) is not None
    limit = _number(first)
    if limit is None:
        raise BadInput(f"{wanted.field} {wanted.operator} needs a number, {first!r} is not", where="--where")
    tests: dict[str, Callable[[float], bool]] = {
        "<": lambda value: value < limit,
        "<=": lambda value: value <= limit,
        ">": lambda value: value > limit,
        ">=": lambda value: value >= limit,
    }
    test = tests[wanted.operator]

    def compare(row: Sequence[str]) -> bool:
        value = _number(row[column])
        return value is not None and test(value)

    return compare


def _glob(pattern: str) -> re.Pattern[str]:
    """`*` is any text, `?` one character; without either: contains. Capitals count for nothing."""
    if "*" not in pattern and "?" not in pattern:
        return re.compile(re.escape(pattern), re.IGNORECASE)
    text = "".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.compile(rf"\A{text}\Z", re.IGNORECASE | re.DOTALL)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _sampled(parent: Parent, split: str, rows: int, seed: int) -> Iterator[Row]:
    """`rows` of the split, each as likely as any other, in their order; other splits as they are."""
    if split not in parent.splits:
        raise BadInput(f"there is no split {split!r}", where="--of", hint=f"there is: {', '.join(parent.splits)}")
    total = parent.splits[split]
    if not 0 < rows <= total:
        raise BadInput(f"{split} has {total:,} rows", where="--sample", hint=f"give a number from 1 to {total}")
    return _chosen(parent, split, rows, seed)


def _chosen(parent: Parent, split: str, rows: int, seed: int) -> Iterator[Row]:
    """Knuth's selection sampling (TAOCP 2, 3.4.2, algorithm S): one pass, no memory, exactly `rows` rows."""
    generator, left, wanted = random.Random(seed), parent.splits[split], rows
    for name, values in parent.rows():
        if name != split:
            yield name, values
            continue
        if generator.random() * left < wanted:
            wanted -= 1
            yield name, values
        left -= 1


def _divided(parent: Parent, plan: SplitPlan) -> Iterator[Row]:
    """All rows of all splits, divided anew; written split by split, so the parent is read once for each."""
    assigned = assign(sum(parent.splits.values()), plan)
    for number, name in enumerate(plan.names):
        for wanted, (_, values) in zip(assigned, parent.rows(), strict=True):
            if wanted == number:
                yield name, values


def _mapped(
    parent: Parent, templates: Mapping[str, str], keep: Sequence[str] | None
) -> tuple[tuple[str, ...], Iterator[Row]]:
    """New fields from templates; `keep` names what stays, in this order (default: everything)."""
    known = list(dict.fromkeys([*parent.fields, *templates]))
    fields = tuple(keep or known)
    missing = [name for name in fields if name not in known]
    if missing:
        raise BadInput(f"there is no field {missing[0]!r}", where="--keep", hint=f"there is: {', '.join(known)}")
    columns = {name: number for number, name in enumerate(parent.fields)}
    makers = [_template(templates[name], columns) if name in templates else _column(columns[name]) for name in fields]
    return fields, ((split, tuple(make(values) for make in makers)) for split, values in parent.rows())


def _column(number: int) -> Callable[[Sequence[str]], str]:
    return lambda values: values[number]


def _template(template: str, columns: Mapping[str, int]) -> Callable[[Sequence[str]], str]:
    """`{field}` is the field's text; `{{` and `}}` write braces."""
    for match in _FIELD.finditer(template):
        if match[1] is not None and match[1] not in columns:
            raise BadInput(
                f"the rows have no field {match[1]!r}", where="--map", hint=f"they have: {', '.join(columns)}"
            )

    def fill(values: Sequence[str]) -> str:
        return _FIELD.sub(lambda m: m[0][0] if m[1] is None else values[columns[m[1]]], template)

    return fill
