"""`column IN (…)` for any number of ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, bindparam


def among(column: ColumnElement[int], ids: Iterable[int]) -> ColumnElement[bool]:
    """The ids are written out as numbers: a statement takes 32,766 bound values in SQLite, 65,535 in PostgreSQL."""
    wanted: Any = bindparam("ids", [int(number) for number in ids], unique=True, expanding=True, literal_execute=True)
    return column.in_(wanted)
