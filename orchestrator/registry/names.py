"""Names that people give."""

from __future__ import annotations

import re

from orchestrator.errors import BadInput

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str, what: str) -> str:
    """The name, if it may be one. `@`, `/` and spaces have other meanings. Raises BadInput."""
    if not _NAME.fullmatch(name):
        raise BadInput(
            f"{name!r} cannot be a name for a {what}",
            hint="a letter or digit, then letters, digits, `.`, `_` and `-`; 100 characters at most",
        )
    return name
