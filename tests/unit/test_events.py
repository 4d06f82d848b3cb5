"""events.jsonl: whole lines only, whoever was killed while writing, and on a full disk."""

from __future__ import annotations

import errno
import inspect
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.events import KINDS, EventWriter, NoEvents, events_of, read_events


def written(path: Path, *steps: int, attempt: int = 1) -> None:
    with EventWriter(path, attempt, clock=lambda: 5.0) as events:
        for step in steps:
            events.write("checkpoint", step=step)


def steps(path: Path, offset: int = 0) -> list[int]:
    return [event["step"] for event in read_events(path, offset)[0]]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "events.jsonl"
    written(path, 1, 2)
    found, end = read_events(path)
    assert found[0] == {"format": 1, "kind": "checkpoint", "attempt": 1, "at": 5.0, "step": 1}
    assert end == path.stat().st_size
    assert read_events(path, end) == ([], end)
    assert read_events(tmp_path / "nothing") == ([], 0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.integers(0, 400), garbage=st.binary(max_size=30))
def test_after_a_kill_at_any_byte_all_whole_events_are_read(cut: int, garbage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.unlink(missing_ok=True)
    written(path, 1, 2, 3)
    whole = path.read_bytes()[:cut]
    path.write_bytes(whole + garbage.replace(b"\n", b""))
    before = [e["step"] for line in whole.splitlines(keepends=True) if line.endswith(b"\n") for e in [json.loads(line)]]
    assert steps(path) == before  # the torn line is left for later
    assert [event["step"] for event in events_of(path, {"checkpoint"})] == before
    written(path, 4, attempt=2)
    assert [event["step"] for event in events_of(path, {"checkpoint"})] == steps(path)
    assert steps(path)[-1] == 4
    assert [step for step in steps(path) if step < 4][: len(before)] == before
    assert len(steps(path)) <= len(before) + 2  # a whole line that only lacked its newline is an event


def test_some_kinds_and_not_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path, 1) as events:
        for step in range(20):
            events.write("progress", step=step, steps=20, tokens_per_second=1.0)
            events.write("warning", message='no "checkpoint" could be written')
            events.write("checkpoint", step=step)
    assert [event["step"] for event in events_of(path, {"checkpoint"})] == list(range(20))
    assert {event["kind"] for event in events_of(path, {"progress", "warning"})} == {"progress", "warning"}
    assert list(events_of(tmp_path / "nothing", {"progress"})) == []
    for most in (1, 100, 1000, 1 << 20):
        found, offset = [], 0
        while (part := read_events(path, offset, most=most))[0]:
            assert part[1] - offset <= most + 200
            offset = part[1]
            found += part[0]
        assert (found, offset) == read_events(path)


def test_a_reader_that_follows_sees_every_event_once(tmp_path: Path) -> None:
    path, offset, seen = tmp_path / "events.jsonl", 0, []
    written(tmp_path / "whole", 1, 2, 3)
    whole = (tmp_path / "whole").read_bytes()
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        found, offset = read_events(path, offset)
        seen += [event["step"] for event in found]
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(
    "line", [b"", b"3", b"[]", b'{"kind": []}', b'{"kind": "no such"}', b'"kind"', b"\xff\xfe", b"[" * 100_000, b"{}"]
)
def test_a_line_that_is_no_event_is_skipped(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line + b"\n")
    written(path, 7)
    assert steps(path) == [7]


def test_text_of_rows_may_hold_anything(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    texts = ["总体 🙂", "a\nb\r\u2028c\x85d", '"\\', "half \ud83d"]
    with EventWriter(path, 1) as events:
        for text in texts:
            events.write("failed", reason="crashed", message=text, alone=False)
    found = [event["message"] for event in read_events(path)[0]]
    assert found[:3] == texts[:3]
    assert found[3] == "half ?"


@pytest.mark.parametrize("fields", [{}, {"step": 1, "extra": 2}, {"other": 1}])
def test_an_event_with_other_fields_is_a_mistake(fields: dict[str, Any], tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl", 1) as events, pytest.raises(ValueError, match=r"events\.KINDS"):
        events.write("checkpoint", **fields)
    with EventWriter(tmp_path / "events.jsonl", 1) as events, pytest.raises(ValueError, match=r"events\.KINDS"):
        events.write("surprise", **fields)


def test_a_disk_that_fills_up_and_is_cleared_loses_and_doubles_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = EventWriter(path, 1)
    events._file.close()
    events._file = disk = FillingFile(path)  # type: ignore[assignment]
    for step in range(200):
        events.write("checkpoint", step=step)
        disk.room = min(disk.room, 300) if step % 3 else disk.room + 250
        try:
            events.flush()
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017 - it need not be raised each time
    disk.room = 10**6
    events.close()
    assert steps(path) == list(range(200))


class FillingFile(io.FileIO):
    """Writes what there is room for, then says ENOSPC, as a full disk does."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "ab")
        self.room = 100

    def write(self, data: Any) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = super().write(bytes(data)[: self.room])
        self.room -= count
        return count


def test_no_events_takes_everything() -> None:
    """Whatever is asked of the one can be asked of the other."""
    for name in ("write", "flush", "close"):
        assert inspect.signature(getattr(NoEvents, name)) == inspect.signature(getattr(EventWriter, name))
    nothing = NoEvents()
    for kind, fields in KINDS.items():
        nothing.write(kind, **dict.fromkeys(fields, 1))
    nothing.flush(sync=True)
    nothing.close()
    assert vars(nothing) == {}
