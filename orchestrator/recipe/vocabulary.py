"""Label words and the base's vocabulary, without a tokenizer: what its files alone can rule out.

A word whose text is no entry of the vocabulary, however it is normalised, is several tokens or unknown; unknown, where
the vocabulary lacks a whole word (WordLevel) or one of its characters (WordPiece). `training.objectives` has the last
word on the others.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from orchestrator.errors import BadInput

_MARKS = ("", "Ġ", "▁")  # how byte-level BPE and SentencePiece write the space in front of a word


def words_of_several_tokens(folder: Path, words: Iterable[str]) -> list[str]:
    """Those of `words` that cannot be one token of the tokenizer in this folder. Empty where it cannot be told."""
    known = _entries(folder)
    if not known:
        return []
    return [word for word in words if known.isdisjoint(_spellings(word.strip()))]


def unknown_words(folder: Path, words: Iterable[str]) -> list[str]:
    """Those of `words` that the tokenizer in this folder cannot write at all. Empty where it cannot be told."""
    kind, known = _read(folder)
    if not known or kind not in {"WordLevel", "WordPiece"}:
        return []
    return [word for word in words if not all(_can_be_written(part, kind, known) for part in word.split())]


def _can_be_written(word: str, kind: str, known: frozenset[str]) -> bool:
    if kind == "WordLevel":
        ways = ([word], re.findall(r"\w+|[^\w\s]+", word))  # whether it splits at punctuation is not asked for
        return any(all(not known.isdisjoint(_spellings(part)) for part in parts) for parts in ways)
    return all(not known.isdisjoint(_pieces(character)) for character in word)


def _pieces(character: str) -> set[str]:
    return {mark + form for form in _spellings(character) for mark in ("", "##")}


def _entries(folder: Path) -> frozenset[str]:
    return _read(folder)[1]


def _read(folder: Path) -> tuple[str, frozenset[str]]:
    """(the kind of tokenizer, every entry of its vocabulary); no entries when they lie in a file of another kind."""
    path, plain = folder / "tokenizer.json", folder / "vocab.txt"
    try:
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            vocabulary = content["model"]["vocab"]  # {entry: id}; Unigram: [[entry, score], …]
            entries = {entry if isinstance(entry, str) else entry[0] for entry in vocabulary}
            added = {token["content"] for token in content.get("added_tokens") or []}
            return str(content["model"].get("type")), frozenset(entries | added)
        if plain.is_file():
            return "WordPiece", frozenset(plain.read_text(encoding="utf-8").split("\n"))
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot be read: {error}", where=str(path if path.is_file() else plain)) from error
    except (KeyError, TypeError, IndexError):
        pass  # no vocabulary in it: a tokenizer of characters or bytes
    return "", frozenset()


def _spellings(word: str) -> set[str]:
    """The word as any of the usual normalisers leaves it, with and without a mark for the space in front of it."""
    forms = {word, unicodedata.normalize("NFKC", word), unicodedata.normalize("NFC", word)}
    forms |= {unicodedata.normalize("NFD", form) for form in forms}
    forms |= {"".join(c for c in form if not unicodedata.combining(c)) for form in forms}
    forms |= {form.lower() for form in forms}
    forms |= {"".join(_BYTES[byte] for byte in form.encode()) for form in forms}
    return {mark + form for form in forms for mark in _MARKS}


def _byte_characters() -> dict[int, str]:
    """GPT-2's character for each byte: printable ones stand for themselves, the others for what follows U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


_BYTES = _byte_characters()
