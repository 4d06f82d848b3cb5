"""The good rows of many files, one after the other; the bad ones counted, reported by line, or set aside."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import pyarrow as pa

from orchestrator.data.checks import Checker
from orchestrator.data.columns import Columns, Pending
from orchestrator.data.readers import read_columns
from orchestrator.data.rows import Advance, Fault, ReadOptions, Record
from orchestrator.errors import BadData, BadInput, NotFound

SHOWN_FAULTS = 10
_RAW_CHARACTERS = 2000


def refuse_unreadable(path: Path) -> None:
    """NotFound or BadInput for what cannot be opened as a file."""
    if not path.exists():
        raise NotFound(
            "no such file", where=str(path), hint="a dataset of the hub is written hub:NAME, e.g. hub:stanfordnlp/sst2"
        )
    if not path.is_file():
        raise BadInput("not a file", where=str(path), hint="name the files one by one, or by a pattern: folder/*.csv")
    if not os.access(path, os.R_OK):
        raise BadInput("this file may not be read", where=str(path))


@dataclass
class Gatherer:
    files: Mapping[str, Sequence[Path]]  #: by split
    options: ReadOptions
    labels: Mapping[Path, str]  #: names for messages, where the path would mean nothing
    advance: Advance
    aside: TextIO  #: takes bad rows as JSON lines
    count: int = 0  #: rows read, good and bad
    fault_count: int = 0
    faults: list[Fault] = field(default_factory=list)  #: the first few
    fatal: bool = False

    def __post_init__(self) -> None:
        self._checker = Checker(self.options)

    @property
    def fields(self) -> tuple[str, ...]:
        return self._checker.fields

    def batches(self, split: str) -> Iterator[pa.RecordBatch]:
        """The split's good rows, some thousands at a time: a column of texts for each field."""
        for path in self.files[split]:
            label = self.labels.get(path, str(path))
            try:
                yield from self._batches_of(path, label)
            except OSError as error:
                raise BadInput(f"cannot be read ({error.strerror or error})", where=label) from error

    def refuse_faults(self) -> None:
        """BadData when there are bad rows that may not be set aside."""
        if self.fault_count and (self.fatal or not self.options.skip_bad):
            raise BadData(self._report(), hint=self._hint())

    def _batches_of(self, path: Path, label: str) -> Iterator[pa.RecordBatch]:
        pending = Pending()
        for item in read_columns(path, self.options, self.advance):
            if not isinstance(item, Columns):
                self._take([item], label, pending)
            elif (found := self._checker.batch(item)) is None:
                self._take(item.rows(), label, pending)
            else:
                self.count += item.count
                yield from pending.flush(self.fields)
                yield found
            if pending.full:
                yield from pending.flush(self.fields)
        yield from pending.flush(self.fields)

    def _take(self, items: Iterable[Record | Fault], label: str, pending: Pending) -> None:
        for item in items:
            self.count += 1
            if isinstance(item, Fault):
                self._set_aside(Fault(label, item.line, item.reason, item.raw, item.fatal))
                continue
            values = self._checker.values(item, label)
            if isinstance(values, str):
                self._set_aside(Fault(label, item.line, values, item.raw or repr(item.values)))
            else:
                pending.add(values)

    def _set_aside(self, fault: Fault) -> None:
        self.fault_count += 1
        self.fatal = self.fatal or fault.fatal
        if len(self.faults) < SHOWN_FAULTS or (fault.fatal and not any(shown.fatal for shown in self.faults)):
            self.faults.append(fault)
        raw = fault.raw[:_RAW_CHARACTERS]
        # ASCII: a bad row may hold what UTF-8 cannot.
        self.aside.write(
            json.dumps({"file": fault.file, "line": fault.line, "reason": fault.reason, "raw": raw}) + "\n"
        )

    def _report(self) -> str:
        rows = "row" if self.count == 1 else "rows"
        lines = [f"{self.fault_count:,} of {self.count:,} {rows} cannot be used; nothing was written"]
        lines += [f"  {fault}" for fault in self.faults]
        more = self.fault_count - len(self.faults)
        return "\n".join([*lines, f"  and {more:,} more"] if more else lines)

    def _hint(self) -> str:
        if self.fatal:
            return "what follows in that file cannot be read, so it cannot be set aside: mend the file"
        reasons = [fault.reason for fault in self.faults]
        if any("not UTF-8" in reason for reason in reasons):
            return "convert the file (e.g. `iconv -f LATIN1 -t UTF-8`), or set these rows aside with --skip-bad"
        if any(f"{what} " in f"{reason} " for reason in reasons for what in ("is empty", "is null", "lacks the field")):
            return "set these rows aside with --skip-bad, or say which fields must not be empty: --required FIELD"
        return "mend these rows, or set them aside with --skip-bad"
