"""What is wrong with a recipe, and where: all faults of a file in one report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.errors import BadRecipe, nearest

KeyPath = tuple[str | int, ...]  #: ("train", "seeds", 0)


@dataclass(frozen=True)
class Finding:
    """A fault of a recipe's contents, before anyone knows in which line they stand."""

    path: KeyPath
    message: str


@dataclass(frozen=True)
class Fault:
    where: str  #: `file:line`, `--set`, or empty
    key: str  #: dotted, empty for the whole file
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.message) if part)


class RecipeFaults(BadRecipe):
    """The recipe has faults."""

    def __init__(self, faults: Sequence[Fault], *, hint: str = "") -> None:
        self.faults = tuple(faults)
        lines = [str(fault) for fault in self.faults]
        message = lines[0] if len(lines) == 1 else "\n  ".join([f"the recipe has {len(lines)} faults", *lines])
        super().__init__(message, hint=hint)


def dotted(path: KeyPath) -> str:
    """`("train", "seeds", 0)` -> `train.seeds[0]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean …?` for the nearest of `known`, or nothing."""
    near = nearest(word, known)
    return f"; did you mean `{near}`?" if near else ""


def shown(value: object) -> str:
    """A value as a message quotes it: short, on one line."""
    text = (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or value is True or value is False
        else repr(value)
    )
    return text if len(text) <= 60 else text[:57] + "..."
