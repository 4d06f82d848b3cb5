"""Which jobs: filters and sorting over all that is known of a job, answered by the database.

    find(registry, where="method=prefix-tuning and metrics.bleu>60", sort=["-metrics.bleu"], limit=50)

A job that lacks a value (it has no bleu yet) matches no comparison with it but `= none`, and stands last when sorted.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection, FromClause

from orchestrator.data.where import HINT, All, AnyOf, Compare, Condition, Not, parse
from orchestrator.errors import BadInput, did_you_mean
from orchestrator.recipe.scores import TELLING, TRAIN
from orchestrator.registry.metrics import BASE
from orchestrator.registry.storage.ids import among
from orchestrator.registry.storage.tables import artifacts, dataset_versions, datasets, jobs, latest_metrics

#: `metrics.bleu` is the test split's, else the validation split's, else what training reports.
SPLITS = (*TELLING, TRAIN)
_TEXT, _NUMBER, _TIME = "text", "number", "time"


@dataclass(frozen=True)
class Field:
    kind: str  #: text, number or time
    column: ColumnElement[Any]
    help: str = ""


@dataclass(frozen=True)
class Found:
    ids: list[int]
    total: int  #: how many match, shown or not


def find(
    connection: Connection,
    where: str = "",
    sort: Sequence[str] = (),
    *,
    limit: int | None = None,
    ids: Sequence[int] | None = None,
) -> Found:
    """Ids in the order asked for (default: newest first). Raises BadInput for what cannot be understood."""
    conditions = [] if not where.strip() else [_compiled(parse(where))]
    if ids is not None:
        conditions.append(among(jobs.c.id, ids))
    order = [_order(key) for key in sort]
    query = sa.select(jobs.c.id).select_from(_FROM).where(*conditions)
    total = connection.execute(sa.select(sa.func.count()).select_from(query.subquery())).scalar()
    ordered = query.order_by(*order, jobs.c.id.desc())
    found = connection.execute(ordered if limit is None else ordered.limit(limit)).scalars().all()
    return Found(list(found), int(total or 0))


def values(connection: Connection, ids: Sequence[int], names: Sequence[str]) -> dict[int, dict[str, Any]]:
    """Some fields of some jobs. Raises BadInput for a name that there is not."""
    columns = [field_of(name).column.label(f"c{number}") for number, name in enumerate(names)]
    query = sa.select(jobs.c.id, *columns).select_from(_FROM).where(among(jobs.c.id, ids))
    return {row[0]: dict(zip(names, row[1:], strict=True)) for row in connection.execute(query)}


def names_in(where: str) -> list[str]:
    """The fields that a filter names, in its order."""
    return [] if not where.strip() else list(dict.fromkeys(_names(parse(where))))


def _names(condition: Condition) -> Iterator[str]:
    if isinstance(condition, Compare):
        yield condition.field
    else:
        for part in (condition.inner,) if isinstance(condition, Not) else condition.parts:
            yield from _names(part)


def fields() -> dict[str, str]:
    """Every name that filters and sorting know, and what it stands for."""
    more = {
        "metrics.NAME": "the newest value on test rows, else validation rows, else in training",
        "metrics.SPLIT.NAME": "the newest value on these rows; SPLIT: test, validation or train",
        "baseline.NAME": "the untuned base's value on the same rows; baseline.SPLIT.NAME too",
        "recipe.KEY": "a key of the recipe, for example recipe.method.length or recipe.train.lr",
    }
    return {name: field.help for name, field in _FIELDS.items()} | more


def field_of(name: str) -> Field:
    """Raises BadInput for a name that there is not."""
    if name in _FIELDS:
        return _FIELDS[name]
    head, *rest = name.split(".")
    if head in {"metrics", "baseline"} and 1 <= len(rest) <= 2 and all(rest):
        return Field(_NUMBER, _metric("" if head == "metrics" else BASE, rest))
    if head == "recipe" and rest and all(rest):
        return Field("", jobs.c.recipe[tuple(int(part) if part.isdecimal() else part for part in rest)])
    known = [*_FIELDS, "metrics", "baseline", "recipe"]
    raise BadInput(f"there is no field {name!r}", where="--where or --sort", hint=did_you_mean(name, known, HINT))


def _metric(prefix: str, path: list[str]) -> ColumnElement[Any]:
    *split, name = path
    if split and split[0] not in SPLITS:
        raise BadInput(f"there is no split {split[0]!r}", where="--where or --sort", hint=f"one of {', '.join(SPLITS)}")
    values = [
        sa.select(latest_metrics.c.value)
        .where(
            latest_metrics.c.job_id == jobs.c.id,
            latest_metrics.c.split == f"{prefix}{one}",
            latest_metrics.c.name == name,
        )
        .scalar_subquery()
        for one in (split or SPLITS)
    ]
    return values[0] if len(values) == 1 else sa.func.coalesce(*values)


def _order(key: str) -> sa.UnaryExpression[Any]:
    field = field_of(key.removeprefix("-"))
    column = field.column.as_string() if field.kind == "" else field.column
    return (column.desc() if key.startswith("-") else column.asc()).nulls_last()


def _compiled(condition: Condition) -> ColumnElement[bool]:
    if isinstance(condition, Not):
        return sa.not_(_compiled(condition.inner))
    if isinstance(condition, All):
        return sa.and_(*map(_compiled, condition.parts))
    if isinstance(condition, AnyOf):
        return sa.or_(*map(_compiled, condition.parts))
    return _comparison(condition)


def _comparison(wanted: Compare) -> ColumnElement[bool]:
    if wanted.field == "dataset" and all("@" not in value for value in wanted.values):
        wanted = Compare("dataset.name", wanted.operator, wanted.values, wanted.quoted)
    field = field_of(wanted.field)
    if wanted.operator == "in":
        return sa.or_(*(_comparison(Compare(wanted.field, "=", (value,))) for value in wanted.values))
    (value,) = wanted.values
    if value == "none" and not wanted.quoted:
        return _none(field, wanted)
    if wanted.operator == "~":
        return _glob(_as_text(field), value)
    column, right = _sides(field, wanted, value)
    return _OPERATORS[wanted.operator](column, right)


def _none(field: Field, wanted: Compare) -> ColumnElement[bool]:
    if wanted.operator not in {"=", "!="}:
        raise BadInput(f"nothing is larger or smaller than none ({wanted.field})", where="--where", hint=HINT)
    column = _as_text(field) if field.kind == "" else field.column
    return column.is_(None) if wanted.operator == "=" else column.is_not(None)


def _sides(field: Field, wanted: Compare, value: str) -> tuple[ColumnElement[Any], Any]:
    """The two sides, of one type."""
    if field.kind == _NUMBER:
        return field.column, _number(wanted.field, value)
    if field.kind == _TIME:
        return field.column, _moment(wanted.field, value)
    if field.kind == "":  # of the recipe: what the value looks like decides
        number = None if wanted.quoted else _maybe_number(value)
        if number is not None:
            return field.column.as_float(), number
        if value in {"true", "false"} and not wanted.quoted:
            return field.column.as_boolean(), value == "true"
        return _as_text(field), value
    return field.column, value


def _as_text(field: Field) -> ColumnElement[Any]:
    if field.kind == "":
        return field.column.as_string()
    return sa.cast(field.column, sa.String) if field.kind == _NUMBER else field.column


def _glob(column: ColumnElement[Any], pattern: str) -> ColumnElement[bool]:
    """`*` is any text, `?` one character; without either: contains. Capitals count for nothing."""
    escaped = re.sub(r"([%_\\])", r"\\\1", pattern)
    if "*" in pattern or "?" in pattern:
        return column.ilike(escaped.replace("*", "%").replace("?", "_"), escape="\\")
    return column.ilike(f"%{escaped}%", escape="\\")


def _number(field: str, value: str) -> float:
    number = _maybe_number(value)
    if number is None:
        raise BadInput(f"{field} is a number, {value!r} is not", where="--where", hint=HINT)
    return number


def _maybe_number(value: str) -> float | None:
    text = value[1:] if re.fullmatch(r"[ga][0-9]+", value) else value  # g12, a12
    try:
        number = float(text)
    except ValueError:
        return None
    return number if number - number == 0 else None


def _moment(field: str, value: str) -> float:
    """A date or a moment in the reader's time zone, or how long ago: 3d, 12h, 30m."""
    ago = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([dhm])", value)
    if ago:
        return datetime.datetime.now().timestamp() - float(ago[1]) * {"d": 86400, "h": 3600, "m": 60}[ago[2]]
    try:
        return datetime.datetime.fromisoformat(value).timestamp()
    except ValueError as error:
        raise BadInput(
            f"{field} is a moment, {value!r} is not",
            where="--where",
            hint="write 2026-11-20, 2026-11-20T10:30 or 3d (ago)",
        ) from error


_OPERATORS: dict[str, Callable[[ColumnElement[Any], Any], ColumnElement[bool]]] = {
    "=": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
}

_FROM: FromClause = (
    jobs.join(dataset_versions, jobs.c.dataset_version_id == dataset_versions.c.id)
    .join(datasets, dataset_versions.c.dataset_id == datasets.c.id)
    .outerjoin(artifacts, artifacts.c.job_id == jobs.c.id)
)

_FIELDS: dict[str, Field] = {
    "id": Field(_NUMBER, jobs.c.id, "the job's number"),
    "group": Field(_NUMBER, jobs.c.group_id, "g12 or 12"),
    "name": Field(_TEXT, jobs.c.name, "name~sst2-* takes * and ?; without them: contains"),
    "user": Field(_TEXT, jobs.c.user, "who submitted it"),
    "state": Field(_TEXT, jobs.c.state, "queued, starting, running, stopping or finished"),
    "result": Field(_TEXT, jobs.c.result, "succeeded, failed or cancelled; none before the end"),
    "reason": Field(_TEXT, jobs.c.reason, "why it ended, for example cuda_oom"),
    "method": Field(_TEXT, jobs.c.method, "for example prefix-tuning"),
    "base": Field(_TEXT, jobs.c.base["id"].as_string(), "the base as the recipe names it"),
    "dataset": Field(
        _TEXT, datasets.c.name + "@" + sa.cast(dataset_versions.c.version, sa.String), "e2e (any version) or e2e@1"
    ),
    "dataset.name": Field(_TEXT, datasets.c.name, "without the version"),
    "seed": Field(_NUMBER, jobs.c.seed, ""),
    "priority": Field(_NUMBER, jobs.c.priority, "low 0, normal 50, high 100"),
    "attempt": Field(_NUMBER, jobs.c.attempt, "how often it was tried"),
    "step": Field(_NUMBER, jobs.c.step, "how far training is"),
    "steps": Field(_NUMBER, jobs.c.steps, "of how many"),
    "slots": Field(_NUMBER, jobs.c.slots, "GPUs or CPU slots that it takes"),
    "artifact": Field(_NUMBER, artifacts.c.id, "a12 or 12; none without one"),
    "submitted": Field(_TIME, jobs.c.submitted_at, "a date, a moment (2026-11-20T10:30), or 3d, 12h, 30m ago"),
    "started": Field(_TIME, jobs.c.started_at, ""),
    "finished": Field(_TIME, jobs.c.finished_at, ""),
    "took": Field(_NUMBER, jobs.c.finished_at - jobs.c.started_at, "seconds from start to end"),
}
