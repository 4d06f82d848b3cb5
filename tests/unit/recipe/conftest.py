from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.recipe.faults import RecipeFaults
from orchestrator.recipe.load import load_recipe


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Writes r.yaml and gives its path."""

    def make(text: str | bytes) -> Path:
        path = tmp_path / "r.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return make


@pytest.fixture
def faults(write: Callable[[str | bytes], Path]) -> Callable[..., list[str]]:
    """The report on a recipe: `line: key: message` each, without the file's name."""

    def report(text: str | bytes, *overrides: str) -> list[str]:
        path = write(text)
        try:
            load_recipe(path, overrides)
        except RecipeFaults as error:
            return [str(fault).removeprefix(f"{path}:").removeprefix(str(path)) for fault in error.faults]
        return []

    return report
