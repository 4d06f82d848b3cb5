from __future__ import annotations

from collections.abc import Iterator

import pytest
from closing import registries_closed


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Not those of fixtures that outlive a test: they close their own."""
    with registries_closed():
        yield
