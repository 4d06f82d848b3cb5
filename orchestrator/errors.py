"""Every error that a person can meet: what happened, where, and what to type next.

The command line catches :class:`PtqError` once, prints one message and exits with the class's exit code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PtqError(Exception):
    """Something went wrong."""

    exit_code = 1

    def __init__(self, message: str = "", *, where: str = "", hint: str = "") -> None:
        """`message` says what happened, `where` names file, key or line, `hint` says what to type next."""
        self.message = message or (self.__doc__ or "")
        self.where = where
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.where}: {self.message}" if self.where else self.message
        return f"{head}\n  {self.hint}" if self.hint else head


class BadInput(PtqError):
    """The input cannot be used; nothing was written."""

    exit_code = 2


class BadRecipe(BadInput):
    """The recipe has faults."""


class BadData(BadInput):
    """The data has faults."""


class NotFound(PtqError):
    """There is no such thing."""

    exit_code = 3


class NotFinished(PtqError):
    """The job has not finished yet."""

    exit_code = 4


class StaleAttempt(PtqError):
    """Another attempt owns this job now; the write was dropped."""


class NotAllowed(BadInput):
    """This belongs to somebody else; nothing was changed."""


class RegistryUnusable(PtqError):
    """The registry cannot be used."""


class MethodDoesNotFit(BadRecipe):
    """The method cannot be used on this base."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that is most like it, whatever its capitals; None: none is."""
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), names, n=1)
    return names[near[0]] if near else None


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """A hint: the nearest known name, else `otherwise`."""
    near = nearest(word, known)
    return f"did you mean {near!r}?" if near else otherwise
