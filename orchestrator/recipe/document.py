"""A YAML file as plain data, with the line of every key.

Scalars are read by YAML 1.2's core schema, as editors read them, not by PyYAML's YAML 1.1: `no` is text and not false,
`5e-5` is a number, `1:30` is not 90, `2024-01-01` is text. Keys are always text. Tags that make objects are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from orchestrator.errors import NotFound
from orchestrator.recipe.faults import Fault, KeyPath, RecipeFaults, dotted

LARGEST_FILE = 1_000_000  # bytes; the longest shipped recipe has 2,000
MOST_VALUES = 20_000  # after aliases are followed: nine nested lists of nine aliases would make 387 million
DEEPEST = 40


@dataclass
class Document:
    """Plain data and where each key stands. `overrides.apply` changes both."""

    data: dict[str, Any]
    places: dict[KeyPath, str]
    faults: list[Fault] = field(default_factory=list)

    def place(self, path: KeyPath) -> str:
        """Where the key stands, or the nearest key above it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return ""

    def blame(self, path: KeyPath, message: str) -> None:
        self.faults.append(Fault(self.place(path), dotted(path), message))


def read_document(path: Path) -> tuple[str, Document]:
    """The file's text and its contents. Faults that leave nothing to look at are raised, the others collected."""
    source = _read_text(path)
    node = _compose(source, str(path))
    if node is None:
        raise RecipeFaults([Fault(f"{path}:1", "", "the file is empty")])
    if not isinstance(node, MappingNode):
        message = "a recipe is a mapping: lines of `key: value`"
        raise RecipeFaults([Fault(f"{path}:{node.start_mark.line + 1}", "", message)])
    document = Document({}, {(): f"{path}:1"})
    document.data = _Builder(document, f"{path}:").build(node, (), 0)
    return source, document


def parse_value(text: str, path: KeyPath, place: str) -> tuple[Any, list[Fault]]:
    """One YAML value, as in `--set key=value`, and what is wrong with it."""
    try:
        node = _compose(text, place)
    except RecipeFaults as error:
        return None, [Fault(place, dotted(path), f"not a YAML value: {error.faults[0].message}")]
    document = Document({}, {(): place})
    value = None if node is None else _Builder(document, None).build(node, path, 0)
    return value, document.faults


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own name


_TAG = "tag:yaml.org,2002:"
_PATTERNS = {
    "null": (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "int": (re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    "float": (
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+0123456789."),
    ),
}
for _name, (_pattern, _first) in _PATTERNS.items():
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)


@dataclass
class _Builder:
    """Turns nodes into plain data and notes their places; `prefix` is `file:`, or None outside a file."""

    document: Document
    prefix: str | None
    values: int = 0

    def build(self, node: Node, path: KeyPath, depth: int) -> Any:
        self.values += 1
        if self.values > MOST_VALUES:
            raise RecipeFaults([Fault(self.document.place(path), "", f"more than {MOST_VALUES:,} values (aliases?)")])
        if depth > DEEPEST:
            message = f"nested more than {DEEPEST} deep, or an alias that contains itself"
            raise RecipeFaults([Fault(self.document.place(path), "", message)])
        if isinstance(node, MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, path, depth)
        if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
            return [self._item(child, (*path, index), depth) for index, child in enumerate(node.value)]
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        self._refuse_tag(node, path)
        return None

    def _mapping(self, node: MappingNode, path: KeyPath, depth: int) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self._note(key_node, path)
                self.document.blame(path, "a key must be text; a brace at the start of a value needs quotes around it")
                continue
            key = self._text(key_node, path)
            inside: KeyPath = (*path, key)
            if key in data:
                first = self.document.place(inside)
                self._note(key_node, inside)
                self.document.blame(inside, f"the key stands twice (first at {first})")
                continue
            self._note(key_node, inside)
            data[key] = self.build(value_node, inside, depth + 1)
        return data

    def _item(self, node: Node, path: KeyPath, depth: int) -> Any:
        self._note(node, path)
        return self.build(node, path, depth + 1)

    def _scalar(self, node: ScalarNode, path: KeyPath) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if kind == "str":
            return self._text(node, path)
        if kind not in _PATTERNS:
            self._refuse_tag(node, path)
            return None
        try:
            if not _PATTERNS[kind][0].match(node.value):
                raise ValueError
            return _CONVERT[kind](node.value)
        except ValueError:
            self.document.blame(path, f"{node.value[:40]!r} is not {kind}")
            return None

    def _text(self, node: ScalarNode, path: KeyPath) -> str:
        """The text, JSON's pairs of escapes for one character (`"\\ud83d\\ude00"`) put together, as PyYAML does not."""
        try:
            return str(node.value).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self.document.blame(path, "an escape stands for half a character only")
            return ""

    def _refuse_tag(self, node: Node, path: KeyPath) -> None:
        tag = node.tag.replace(_TAG, "!!")
        self.document.blame(
            path, f"the YAML tag `{tag}` is refused: recipes hold text, numbers, lists and mappings only"
        )

    def _note(self, node: Node, path: KeyPath) -> None:
        if self.prefix is not None:
            self.document.places[path] = f"{self.prefix}{node.start_mark.line + 1}"


def _to_int(text: str) -> int:
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


def _to_float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_CONVERT = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": _to_int,
    "float": _to_float,
}


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise NotFound(
            "there is no such file", where=str(path), hint="ptq recipe list shows the recipes that come with ptq"
        ) from None
    except OSError as error:
        raise RecipeFaults([Fault(str(path), "", f"cannot be read: {error.strerror or error}")]) from error
    if len(data) > LARGEST_FILE:
        raise RecipeFaults([Fault(str(path), "", f"{len(data):,} bytes; a recipe has at most {LARGEST_FILE:,}")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8"
        raise RecipeFaults([Fault(f"{path}:{line}", "", message)]) from error


def _compose(text: str, name: str) -> Node | None:
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeFaults([Fault(f"{name}:{line}", "", "a control character that YAML does not allow")]) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise RecipeFaults([Fault(f"{name}:{line}", "", _syntax(error, text, line))]) from error
    except RecursionError as error:
        raise RecipeFaults([Fault(name, "", f"nested more than {DEEPEST} deep")]) from error


def _syntax(error: yaml.MarkedYAMLError, text: str, line: int) -> str:
    lines = text.splitlines()
    if line <= len(lines) and "\t" in lines[line - 1][: len(lines[line - 1]) - len(lines[line - 1].lstrip())]:
        return "a tab at the start of the line; YAML indents with spaces"
    context = f" {error.context}" if error.context else ""
    return f"not YAML: {error.problem}{context}"
