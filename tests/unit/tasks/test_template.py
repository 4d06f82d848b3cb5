from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.errors import BadData, BadRecipe
from orchestrator.tasks.template import Field, Mask, Text, Virtual, escape, parse


def test_the_chinese_template_of_the_design() -> None:
    template = parse("[P:4] {text} 总体评价是 [MASK] 的")
    assert template.fields == ("text",)
    assert template.virtual_tokens == 4
    assert template.masks == 1
    assert template.render({"text": "很好"}) == [Virtual(0, 4), Text(" 很好 总体评价是 "), Mask(), Text(" 的")]


def test_virtual_tokens_are_counted_over_the_whole_template() -> None:
    pieces = parse("[P:3]{a}[P][MASK][P:2]").render({"a": "x"})
    assert pieces == [Virtual(0, 3), Text("x"), Virtual(3, 1), Mask(), Virtual(4, 2)]


def test_fields_are_named_once_in_order() -> None:
    assert parse("{b} {a} {b} {名前}").fields == ("b", "a", "名前")


def test_empty_values_leave_no_piece() -> None:
    assert parse("{a}[MASK]{a}").render({"a": ""}) == [Mask()]
    assert parse("").render({}) == []


@pytest.mark.parametrize(
    "text", ["{{x}}", r"\[MASK]", r"\[P:3]", "[CLS]", "[1]", "[", "]", "\\", "a\\b", r"[\[P]", "[P 3]"]
)
def test_plain_text_holds_nothing_to_fill_in(text: str) -> None:
    template = parse(text)
    assert template.fields == ()
    assert template.masks == template.virtual_tokens == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "stands alone"),
        ("a } b", "stands alone"),
        ("{a{b}", "stands alone"),
        ("{}", "names no field"),
        ("{ text }", "write {text}"),
        ("[P:0]", "number k"),
        ("[P:]", "number k"),
        ("[P:-1]", "number k"),
        ("[P:1.5]", "number k"),
        ("[P:99999]", "number k"),
        ("[P4]", "[P:4]"),
        ("[mask]", "[MASK]"),
        ("[p:3]", "[P:3]"),
        ("[T:0]", "from 1 to 10000"),
    ],
)
def test_mistakes_are_refused_with_the_right_spelling(text: str, said: str) -> None:
    with pytest.raises(BadRecipe) as caught:
        parse(text)
    assert said in caught.value.message


def test_a_missing_field_names_those_there_are() -> None:
    with pytest.raises(BadData, match=r"no field `text`.*\n.*label, sentence"):
        parse("{text}").render({"sentence": "a", "label": "b"})


# Text that is full of what templates are made of.
awkward = st.lists(
    st.sampled_from(["{", "}", "{{", "}}", "[", "]", "\\", "[MASK]", "[P:3]", "{x}", "P", " ", "好", "a"])
).map("".join)


@given(awkward)
def test_escaped_text_renders_as_itself(text: str) -> None:
    assert parse(escape(text)).render({}) == ([Text(text)] if text else [])


@given(awkward)
def test_values_are_never_parsed(value: str) -> None:
    assert parse("<{x}|{x}>").render({"x": value}) == [Text(f"<{value}|{value}>")]


parts = st.one_of(
    awkward.filter(bool).map(Text),
    st.integers(1, 50).map(lambda count: Virtual(0, count)),
    st.just(Mask()),
    st.sampled_from(["a", "b c", "名"]).map(Field),
)


def written(part: Text | Virtual | Mask | Field) -> str:
    if isinstance(part, Text):
        return escape(part.text)
    if isinstance(part, Virtual):
        return f"[P:{part.count}]"
    return "[MASK]" if isinstance(part, Mask) else f"{{{part.name}}}"


@given(st.lists(parts))
@example([Text("\\"), Virtual(0, 3)])
@example([Text("{"), Field("a"), Text("}")])
def test_parsing_reads_back_what_was_written(drawn: list[Text | Virtual | Mask | Field]) -> None:
    """Escapes never reach into the next part, whatever stands beside it."""
    row = {"a": "{b c}", "b c": "[MASK]", "名": "\\"}
    template = parse("".join(written(part) for part in drawn))
    pieces = template.render(row)
    expected = "".join(
        row[part.name] if isinstance(part, Field) else part.text if isinstance(part, Text) else "\0" for part in drawn
    )
    assert "".join(piece.text if isinstance(piece, Text) else "\0" for piece in pieces) == expected
    assert template.masks == drawn.count(Mask())
    counts = [piece for piece in pieces if isinstance(piece, Virtual)]
    assert [piece.count for piece in counts] == [part.count for part in drawn if isinstance(part, Virtual)]
    assert [piece.start for piece in counts] == [sum(p.count for p in counts[:i]) for i in range(len(counts))]
    assert not any(isinstance(a, Text) and isinstance(b, Text) for a, b in itertools.pairwise(pieces))
