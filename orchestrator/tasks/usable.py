"""What a row must hold for its task, whatever the base: asked at submit, and again where the row is used."""

from __future__ import annotations

import json
from collections.abc import Sequence

from orchestrator.errors import BadData
from orchestrator.tasks.lists import listed


def words_and_tags(words: str, tags: str) -> tuple[list[str], list[str]]:
    """The items of both. Raises BadData where a word has no tag, or a tag no word."""
    found = listed(words), listed(tags)
    if len(found[0]) != len(found[1]):
        raise BadData(f"a row has {len(found[0])} words and {len(found[1])} tags")
    return found


def place_of(answer: str, start: int | None, context: str) -> tuple[int, int]:
    """First character of the answer and the one behind its last; where it does not stand at `start`, its first place.

    Raises BadData where it stands nowhere.
    """
    if start is None or context[start : start + len(answer)] != answer:
        start = context.find(answer)
    if start < 0 or not answer:
        raise BadData(f"the answer {answer!r} does not stand in its context")
    return start, start + len(answer)


def probabilities(text: str, labels: Sequence[str], temperature: float) -> tuple[float, ...]:
    """Each label's probability by a JSON mapping, flattened by the temperature: p^(1/T), summing up to 1.

    Raises BadData.
    """
    try:
        found = {str(label): float(value) for label, value in json.loads(text).items()}
        flat = [found[name] ** (1 / temperature) for name in labels]
        if not sum(flat) > 0 or min(flat) < 0:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"`{text[:60]}` is not a JSON mapping from each of the labels to its probability"
        raise BadData(what, hint=f"the labels: {', '.join(labels)}") from error
    return tuple(value / sum(flat) for value in flat)
