"""Lists in a row's fields: datasets hold text, so a list is written as JSON, or with spaces between its items."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.errors import BadData


def listed(text: str) -> list[str]:
    """`["New", "York"]` or `New York` -> its two items. BadData for JSON that is no list of texts."""
    if not text.lstrip().startswith("["):
        return text.split()
    try:
        found = json.loads(text)
    except ValueError:
        return text.split()  # words may begin with a bracket
    if not isinstance(found, list) or not all(isinstance(item, str | int | float) for item in found):
        raise BadData(f"`{text[:40]}` is not a list of texts")
    return [str(item) for item in found]


def answers(text: str) -> list[tuple[str, int | None]]:
    """(answer, its first character in the context or None) of SQuAD's forms, of a list of texts, or of one text.

    SQuAD: `[{"text": …, "answer_start": …}, …]`; the hub's: `{"text": […], "answer_start": […]}`. Empty: no answer.
    """
    if not text.lstrip().startswith(("[", "{")):
        return [(text, None)] if text.strip() else []
    try:
        found: Any = json.loads(text)
    except ValueError:
        return [(text, None)]
    try:
        if isinstance(found, dict):
            starts = found.get("answer_start") or [None] * len(found["text"])
            return [(str(t), None if s is None else int(s)) for t, s in zip(found["text"], starts, strict=True)]
        return [
            (str(one["text"]), None if one.get("answer_start") is None else int(one["answer_start"]))
            if isinstance(one, dict)
            else (str(one), None)
            for one in found
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise BadData(f"`{text[:40]}` is no form of answers that is known") from error
