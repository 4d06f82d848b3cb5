"""What an artifact says in words: those that AutoPrompt has found, and those nearest to its virtual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.cli.output import render
from orchestrator.errors import NotFound
from orchestrator.paths import ArtifactPaths, read_json

_NARROW = 3  #: words beside each virtual token that 80 columns have room for


def found_words(facts: Mapping[str, Any]) -> dict[str, str]:
    """Of artifact.json: the template with AutoPrompt's words in it, and the label words that it has found."""
    words = facts.get("words")
    if not words:
        return {}
    recipe = facts["recipe"]
    otherwise = (
        "" if words["same_tokens"] else " (as text it is other tokens: the words are pieces of words, or [MASK])"
    )
    said = {"template": f"{words['template']}{otherwise}"}
    if recipe["method"].get("label_words"):
        said["labels"] = "; ".join(f"{label}: {' '.join(own)}" for label, own in recipe["task"]["labels"].items())
    return said


def best_step(facts: Mapping[str, Any]) -> str:
    best = facts.get("best")
    return "" if not best else f"step {best['step']} of {facts['steps']}, {render.number(best['value'])}"


def print_neighbours(folder: Path, ref: str) -> None:
    """Each virtual token with its norm and the words nearest to it; tokens that share one; class labels that are near.

    Raises NotFound where the virtual tokens are no input embeddings.
    """
    report = neighbours_of(folder, ref)
    shown = _NARROW if render.is_narrow() else None
    rows = [
        (one["number"], f"{one['norm']:.3g}", *map(_near, one["neighbours"][:shown]))
        for one in report["virtual_tokens"]
    ]
    names = ["nearest", *map(str, range(2, len(rows[0]) - 1))]
    render.table(["token", "norm", *names], rows, right=("token", "norm"))
    for one in report["duplicates"]:
        render.say(f"tokens {_listed(one['numbers'])} are nearest to the same word, {one['token']}")
    for word, numbers in report["label_words"].items():
        near = f"near token{'s' * (len(numbers) > 1)} {_listed(numbers)}" if numbers else "near none"
        render.say(f"label word {word}: {near}")


def neighbours_of(folder: Path, ref: str) -> dict[str, Any]:
    try:
        return dict(read_json(ArtifactPaths(folder).neighbours))
    except FileNotFoundError:
        what = f"{ref} has no virtual tokens among the base's input embeddings, so no words are nearest to them"
        raise NotFound(what, hint="prompt tuning, P-tuning and WARP have such tokens") from None


def _near(word: Mapping[str, Any]) -> str:
    return f"{word['token']} {word['cosine']:.2f}"


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
