r"""Templates: plain text with `{field}` of a row, `[P:3]` virtual tokens, `[T:3]` searched words, `[MASK]` and `[SEP]`,
where the second of two texts begins.

    template  = (text | "{" field "}" | "[P]" | "[P:" k "]" | "[T]" | "[T:" k "]" | "[MASK]" | "[SEP]")*
    escapes   : `{{` and `}}` write braces; `\[` writes a bracket that opens nothing, `\\` a backslash

A template is parsed once. A field's value is put in as it is and never parsed: a row that contains `[MASK]`, `{x}` or
`[P:3]` stays plain text. Any other bracket (`[CLS]`, `[1]`) is plain text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.errors import BadData, BadRecipe


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Virtual:
    start: int  #: number of virtual tokens before these, over the whole template
    count: int
    searched: bool = False  #: [T]: words of the vocabulary that AutoPrompt finds


@dataclass(frozen=True)
class Mask:
    pass


@dataclass(frozen=True)
class Separator:
    pass


@dataclass(frozen=True)
class Field:
    name: str


Piece = Text | Virtual | Mask | Separator  #: of a rendered row


@dataclass(frozen=True)
class Template:
    source: str
    parts: tuple[Text | Virtual | Mask | Separator | Field, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields, each once, in the order of their first use."""
        return tuple(dict.fromkeys(part.name for part in self.parts if isinstance(part, Field)))

    @property
    def virtual_tokens(self) -> int:
        """Number of virtual tokens that the template places."""
        return sum(part.count for part in self.parts if isinstance(part, Virtual))

    @property
    def searched_tokens(self) -> int:
        """How many of them are words to be found."""
        return sum(part.count for part in self.parts if isinstance(part, Virtual) and part.searched)

    @property
    def masks(self) -> int:
        return sum(isinstance(part, Mask) for part in self.parts)

    @property
    def separators(self) -> int:
        return sum(isinstance(part, Separator) for part in self.parts)

    def render(self, row: Mapping[str, str]) -> list[Piece]:
        """The pieces for one row; neighbouring text is merged, empty text left out. A missing field is BadData."""
        pieces: list[Piece] = []
        for part in self.parts:
            piece = Text(_value(row, part.name)) if isinstance(part, Field) else part
            if not isinstance(piece, Text):
                pieces.append(piece)
            elif pieces and isinstance(pieces[-1], Text):
                pieces[-1] = Text(pieces[-1].text + piece.text)
            elif piece.text:
                pieces.append(piece)
        return pieces

    def render_text(self, row: Mapping[str, str]) -> str:
        """The text for one row, virtual tokens and masks left out: for targets and labels."""
        return "".join(piece.text for piece in self.render(row) if isinstance(piece, Text))


def parse(text: str) -> Template:
    """Parse a template; BadRecipe says what is wrong and how to write it."""
    parts: list[Text | Virtual | Mask | Separator | Field] = []
    plain: list[str] = []
    placed = at = 0
    while at < len(text):
        part, at = _next(text, at)
        if isinstance(part, str):
            plain.append(part)
            continue
        if plain:
            parts.append(Text("".join(plain)))
            plain = []
        if isinstance(part, Virtual):
            part = Virtual(placed, part.count, part.searched)
            placed += part.count
        parts.append(part)
    if plain:
        parts.append(Text("".join(plain)))
    return Template(text, tuple(parts))


def escape(text: str) -> str:
    """A template that renders as exactly `text`."""
    return text.replace("\\", r"\\").replace("{", "{{").replace("}", "}}").replace("[", r"\[")


def fill(template: Template, words: Sequence[str]) -> str:
    """The template with words in place of its virtual tokens, spaces between them; it parses to the rest as it was."""
    parts = []
    for part in template.parts:
        if isinstance(part, Virtual):
            parts.append(" ".join(escape(word.strip()) for word in words[part.start : part.start + part.count]))
        elif isinstance(part, Text):
            parts.append(escape(part.text))
        else:
            parts.append(_SLOTS[type(part)] if not isinstance(part, Field) else f"{{{part.name}}}")
    return "".join(parts)


_PLAIN = re.compile(r"[^{}\[\\]+")
_FIELD = re.compile(r"\{([^{}]*)\}")
_SLOT = re.compile(r"\[(mask|sep|[pt](?::[^\[\]]*)?|p[0-9]+)\]", re.IGNORECASE)
_SLOTS: dict[type, str] = {Mask: "[MASK]", Separator: "[SEP]"}
_MOST_VIRTUAL = 10_000  # as `recipe.methods.Length`


def _next(text: str, at: int) -> tuple[str | Virtual | Mask | Separator | Field, int]:
    """The part that begins at `at` (plain text as str), and where the next one begins."""
    plain = _PLAIN.match(text, at)
    if plain:
        return plain.group(), plain.end()
    if text.startswith(("{{", "}}"), at):
        return text[at], at + 2
    if text.startswith((r"\[", r"\\"), at):
        return text[at + 1], at + 2
    if text[at] in "{}":
        return _field(text, at)
    slot = _SLOT.match(text, at)
    if slot:
        return _slot(slot.group(1)), slot.end()
    return text[at], at + 1


def _field(text: str, at: int) -> tuple[Field, int]:
    match = _FIELD.match(text, at)
    if match is None:
        raise BadRecipe(
            f"`{text[at]}` at character {at + 1} stands alone; write {{field}}, or {text[at] * 2} for a plain brace"
        )
    name = match.group(1)
    if not name.strip():
        raise BadRecipe(f"`{match.group()}` at character {at + 1} names no field; write for example {{text}}")
    if name != name.strip():
        raise BadRecipe(f"`{match.group()}`: no spaces inside the braces; write {{{name.strip()}}}")
    return Field(name), match.end()


def _slot(body: str) -> Virtual | Mask | Separator:
    kind, colon, count = body.partition(":")
    if kind == "MASK":
        return Mask()
    if kind == "SEP":
        return Separator()
    if kind in {"P", "T"}:
        if not colon:
            return Virtual(0, 1, kind == "T")
        if re.fullmatch(r"[0-9]{1,6}", count) and 1 <= int(count) <= _MOST_VIRTUAL:
            return Virtual(0, int(count), kind == "T")
        raise BadRecipe(
            f"`[{body}]`: write [{kind}:k] with a number k from 1 to {_MOST_VIRTUAL}, for example [{kind}:3]"
        )
    upper = re.sub(r"^P(?=[0-9])", "P:", body.upper())
    raise BadRecipe(rf"`[{body}]`: write [{upper}], or \[{body}] for plain text")


def _value(row: Mapping[str, str], name: str) -> str:
    try:
        return row[name]
    except KeyError:
        known = ", ".join(sorted(row)) or "none"
        raise BadData(f"a row has no field `{name}`", hint=f"its fields: {known}") from None
