"""Every row against the dataset's fields: one text for each field, none missing, no required one empty."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from orchestrator.data.columns import Columns, batch_of, texts
from orchestrator.data.rows import ReadOptions, Record
from orchestrator.errors import BadInput, did_you_mean
from orchestrator.values import field_text


class Checker:
    """The first row decides the fields (or `keep` does); every other row of every file must have the same."""

    def __init__(self, options: ReadOptions) -> None:
        self._options = options
        self._required: frozenset[str] = frozenset()
        self.fields: tuple[str, ...] = ()
        self._first = ""

    def values(self, record: Record, file: str) -> tuple[str, ...] | str:
        """The row's texts in the order of `fields`, or the reason why it cannot be used. Raises BadInput."""
        if not self.fields:
            self._begin(record, file)
        names, values = record.names, record.values
        if names != self.fields:
            found = dict(zip(names, values, strict=True))
            reason = self._names_fault(found)
            if reason:
                return reason
            values = [found.get(name) for name in self.fields]
        return self._texts(values)

    def batch(self, columns: Columns) -> pa.RecordBatch | None:
        """The same for many rows at once; None: they have to be looked at one by one, as the very first ones have."""
        if not self.fields or self._options.strip or not set(columns.names) >= set(self.fields):
            return None
        if not self._options.keep and len(columns.names) != len(self.fields):
            return None
        found = dict(zip(columns.names, columns.values, strict=True))
        columns_of = [texts(found[name], required=name in self._required) for name in self.fields]
        if any(column is None for column in columns_of):
            return None
        return batch_of(self.fields, columns_of)

    def _begin(self, record: Record, file: str) -> None:
        where = f"{file}:{record.line}"
        for name in record.names:
            if not name.strip() or "\0" in name or _half_a_character(name):
                raise BadInput(f"the field name {name!r} cannot be used", where=where)
            if record.names.count(name) > 1:
                raise BadInput(f"the field {name!r} stands twice", where=where, hint="rename one of the two")
        refuse_unknown(self._options.keep, record.names, "--keep", where)
        fields = self._options.keep or record.names
        required = fields if self._options.required is None else self._options.required
        refuse_unknown(required, fields, "--required", where)
        self._required = frozenset(required)
        self.fields = tuple(fields)
        self._first = where

    def _names_fault(self, found: dict[str, object]) -> str | None:
        for name in self.fields:
            if name not in found and name in self._required:
                return f"lacks the field {name!r}"
        if self._options.keep:
            return None
        extra = [name for name in found if name not in self.fields]
        return f"has the field {extra[0]!r}, which the first row ({self._first}) lacks" if extra else None

    def _texts(self, values: Sequence[object]) -> tuple[str, ...] | str:
        texts = []
        for name, value in zip(self.fields, values, strict=True):
            if value is None and name in self._required:
                return f"the field {name!r} is null"
            try:
                text = field_text(value)
            except ValueError as error:
                return f"the field {name!r} {error}"
            if self._options.strip:
                text = text.strip()
            if name in self._required and not text.strip():
                return f"the field {name!r} is empty"
            texts.append(text)
        return tuple(texts)


def refuse_unknown(wanted: Sequence[str], known: Sequence[str], option: str, where: str) -> None:
    """BadInput when an option names a field that the data lack."""
    for name in wanted:
        if name not in known:
            raise BadInput(
                f"{option} names the field {name!r}, which the data lack",
                where=where,
                hint=did_you_mean(name, known, f"the fields are: {', '.join(known)}"),
            )


def _half_a_character(name: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in name)
