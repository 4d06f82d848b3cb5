"""Label words and the base's vocabulary, without a tokenizer: what its files alone can rule out.

A verbalizer reads one token a word. A word whose text is no entry of the vocabulary, however it is normalised, is
several tokens or unknown; `training.objectives.verbalizer` has the last word on the others.
"""

from __future__ import annotations

import json
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


def _entries(folder: Path) -> frozenset[str]:
    """Every entry of the vocabulary; empty when it lies in a file of another kind."""
    path, plain = folder / "tokenizer.json", folder / "vocab.txt"
    try:
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            vocabulary = content["model"]["vocab"]  # {entry: id}; Unigram: [[entry, score], …]
            entries = {entry if isinstance(entry, str) else entry[0] for entry in vocabulary}
            return frozenset(entries | {token["content"] for token in content.get("added_tokens") or []})
        if plain.is_file():
            return frozenset(plain.read_text(encoding="utf-8").split("\n"))
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot be read: {error}", where=str(path if path.is_file() else plain)) from error
    except (KeyError, TypeError, IndexError):
        pass  # no vocabulary in it: a tokenizer of characters or bytes
    return frozenset()


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
