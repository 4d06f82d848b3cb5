"""The filter language of `ptq jobs --where` and `ptq dataset derive --where`: text in, a tree out.

    method=prefix-tuning and metrics.bleu>60
    (user=ann or user=bob) and not state=finished
    name~sst2-* and recipe.train.lr in (1e-3, 5e-3)

A value is a word, a number, `none`, or text in quotes. It is only ever compared, never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.errors import BadInput

OPERATORS = ("<=", ">=", "!=", "==", "=", "<", ">", "~")
_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<operator><=|>=|!=|==|[=<>~])"""
    r"""|(?P<mark>[(),])|(?P<word>[^\s()<>=!~,"']+))"""
)
_DEEPEST = 50  # brackets in brackets; Python's own stack ends at about 1000
HINT = "for example: --where 'method=prefix-tuning and metrics.bleu>60'; `ptq jobs --fields` lists the names"


@dataclass(frozen=True)
class Compare:
    field: str
    operator: str  #: one of = != < <= > >= ~ in
    values: tuple[str, ...]
    quoted: bool = False  #: text, whatever it looks like


@dataclass(frozen=True)
class Not:
    inner: Condition


@dataclass(frozen=True)
class All:
    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class AnyOf:
    parts: tuple[Condition, ...]


Condition = Compare | Not | All | AnyOf


@dataclass(frozen=True)
class _Token:
    kind: str  #: quoted, operator, mark, word or end
    text: str
    at: int


def parse(text: str) -> Condition:
    """Raises BadInput that shows the place."""
    parser = _Parser(text, list(_tokens(text)))
    found = parser.either(0)
    parser.expect_end()
    return found


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            start = at + len(text[at:]) - len(text[at:].lstrip())
            raise _fault(text, start, "a quote is not closed" if text[start] in "\"'" else "not understood")
        yield _Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup))
        at = match.end()
    yield _Token("end", "", len(text))


def _fault(text: str, at: int, what: str) -> BadInput:
    flat = " ".join(text.split("\n"))
    return BadInput(f"{what}\n    {flat}\n    {' ' * at}^", where="--where", hint=HINT)


class _Parser:
    def __init__(self, text: str, tokens: list[_Token]) -> None:
        self._text = text
        self._tokens = tokens
        self._next = 0

    def either(self, depth: int) -> Condition:
        parts = [self._both(depth)]
        while self._take("or"):
            parts.append(self._both(depth))
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def expect_end(self) -> None:
        token = self._tokens[self._next]
        if token.kind != "end":
            raise self._wrong(token, "`and`, `or` or the end is expected here")

    def _both(self, depth: int) -> Condition:
        parts = [self._one(depth)]
        while self._take("and"):
            parts.append(self._one(depth))
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _one(self, depth: int) -> Condition:
        if depth > _DEEPEST:
            raise BadInput("too many brackets in brackets", where="--where")
        if self._take("not"):
            return Not(self._one(depth + 1))
        if self._take("("):
            inner = self.either(depth + 1)
            if not self._take(")"):
                raise self._wrong(self._tokens[self._next], "`)` is expected here")
            return inner
        return self._comparison()

    def _comparison(self) -> Compare:
        field = self._tokens[self._next]
        if field.kind != "word" or field.text.lower() in {"and", "or", "in"}:
            raise self._wrong(field, "a name such as metrics.bleu is expected here")
        self._next += 1
        if self._take("in"):
            return Compare(field.text, "in", self._list())
        operator = self._tokens[self._next]
        if operator.kind != "operator":
            raise self._wrong(operator, f"one of {' '.join(OPERATORS)} or `in (…)` is expected after {field.text!r}")
        self._next += 1
        value = self._value()
        text = "=" if operator.text == "==" else operator.text
        return Compare(field.text, text, (_unquoted(value),), value.kind == "quoted")

    def _list(self) -> tuple[str, ...]:
        if not self._take("("):
            raise self._wrong(self._tokens[self._next], "`(` is expected after `in`")
        values = [_unquoted(self._value())]
        while self._take(","):
            values.append(_unquoted(self._value()))
        if not self._take(")"):
            raise self._wrong(self._tokens[self._next], "`,` or `)` is expected here")
        return tuple(values)

    def _value(self) -> _Token:
        token = self._tokens[self._next]
        if token.kind not in {"word", "quoted"}:
            raise self._wrong(token, "a value is expected here")
        self._next += 1
        return token

    def _take(self, text: str) -> bool:
        token = self._tokens[self._next]
        if token.kind not in {"word", "mark"} or token.text.lower() != text:
            return False
        self._next += 1
        return True

    def _wrong(self, token: _Token, what: str) -> BadInput:
        return _fault(self._text, token.at, what)


def _unquoted(token: _Token) -> str:
    return re.sub(r"\\(.)", r"\1", token.text[1:-1]) if token.kind == "quoted" else token.text
