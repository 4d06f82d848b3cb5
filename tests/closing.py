"""Every registry that is opened within is closed: since 3.13 Python warns of a connection that nobody has closed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from orchestrator.registry.storage.engine import Registry


@contextmanager
def registries_closed() -> Iterator[None]:
    opened: list[Registry] = []
    make = Registry.__init__

    def made(self: Registry, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        opened.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Registry, "__init__", made)
        try:
            yield
        finally:
            for registry in opened:
                registry.close()
