from __future__ import annotations

from collections.abc import Callable

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from recipe_texts import SMALL

from orchestrator.recipe.document import parse_value

Faults = Callable[..., list[str]]

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1: the file is empty"),
        ("# nothing\n", "1: the file is empty"),
        ("- a\n- b\n", "1: a recipe is a mapping: lines of `key: value`"),
        ("just words\n", "1: a recipe is a mapping: lines of `key: value`"),
        ("name: a\n\tbase: b\n", "2: a tab at the start of the line; YAML indents with spaces"),
        ("name: [a\nbase: b\n", "not YAML: "),
        ("name: a\n---\nname: b\n", "not YAML: but found another document expected a single document in the stream"),
        ("name: *nowhere\n", "1: not YAML: found undefined alias 'nowhere'"),
        ("name: a\x00b\n", "1: a control character that YAML does not allow"),
        ("name: a\nbase: \x07\n", "2: a control character that YAML does not allow"),
        (b"name: a\nbase: caf\xe9\n", "2: not UTF-8 (byte 0xe9); save the file as UTF-8"),
        (SMALL.encode("utf-16"), "1: not UTF-8 (byte 0xff); save the file as UTF-8"),
        ("x: " + "[" * 5000 + "]" * 5000, "nested more than 40 deep"),
        ("x: " + "[" * 60 + "]" * 60, "1: nested more than 40 deep"),
        ("x: &a [*a]\n", "1: nested more than 40 deep, or an alias that contains itself"),
        (BOMB, "more than 20,000 values (aliases?)"),
        ("# " + "x" * 1_000_001, "1,000,003 bytes; a recipe has at most 1,000,000"),
    ],
)
def test_what_cannot_be_read_gives_one_clear_fault(faults: Faults, text: str | bytes, said: str) -> None:
    report = faults(text)
    assert len(report) == 1
    assert said in report[0]


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system [echo]",
        "!!python/name:os.system",
        "!thing x",
        "!!set {a, b}",
        "!!timestamp 2024",
    ],
)
def test_tags_that_make_objects_are_refused(faults: Faults, value: str) -> None:
    report = faults(SMALL.replace("dataset: d", f"dataset: {value}"))
    assert len(report) == 1
    assert report[0].startswith("3: dataset: the YAML tag `!")
    assert "is refused" in report[0]


def test_a_key_that_stands_twice_names_both_lines(faults: Faults) -> None:
    report = faults(SMALL + "name: again\n")
    assert len(report) == 1
    assert report[0].startswith("7: name: the key stands twice (first at ")
    assert report[0].endswith("r.yaml:1)")


def test_a_template_without_quotes_is_explained(faults: Faults) -> None:
    report = faults(SMALL.replace('input: "{a}"', "input: {a}"))
    assert report == ["4: task.input: must be text, not {'a': None}; put quotes around it"]
    assert faults("{a}: b\n")[0].startswith("1: a key must be text")


def test_a_byte_order_mark_is_no_fault(faults: Faults) -> None:
    assert faults(SMALL.encode("utf-8-sig")) == []
    assert faults(SMALL.replace("\n", "\r\n")) == []


def test_faults_of_reading_and_of_checking_come_together(faults: Faults) -> None:
    report = faults(SMALL.replace("lr: 0.1", "lr: 0.1, lr: 0.2, stps: 3"))
    assert [line.partition(";")[0].partition(" (")[0] for line in report] == [
        "6: train.lr: the key stands twice",
        "6: train.stps: unknown key",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("off", "off"),
        ("true", True),
        ("1:30", "1:30"),
        ("010", 10),
        ("0x10", 16),
        ("0o10", 8),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("5e-5", 5e-5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("~", None),
        ("", None),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        (r'"\ud83d\ude00"', "\U0001f600"),
        ("[a, {b: 1}]", ["a", {"b": 1}]),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    assert parse_value(text, (), "--set") == (value, [])


def test_half_a_character_is_a_fault() -> None:
    assert [str(fault) for fault in parse_value(r'"\ud83d"', ("k",), "--set")[1]] == [
        "--set: k: an escape stands for half a character only"
    ]


@pytest.mark.parametrize("text", ["!!int x", "!!bool 3", "9" * 5000])
def test_scalars_that_are_not_what_they_say(text: str) -> None:
    value, faults = parse_value(text, ("k",), "--set")
    assert value is None
    assert [str(fault)[:9] for fault in faults] == ["--set: k:"]


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.floats(allow_nan=False), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(min_size=1, max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(plain)
def test_what_pyyaml_dumps_is_read_back(value: object) -> None:
    """In quotes, with `!!int` and the like where needed: YAML 1.1 and 1.2 differ about plain `1e3` and `0o10` only."""
    text = yaml.safe_dump(value, allow_unicode=True, default_style='"')
    assert parse_value(text, (), "--set") == (value, [])
