"""`ptq base add NAME a3`: the base that a job has made of another."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.cli import base
from orchestrator.errors import BadInput
from orchestrator.registry import artifacts


def test_an_artifact_stands_for_the_base_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nothing: Any = None
    (tmp_path / "store" / "base").mkdir(parents=True)
    monkeypatch.setattr(artifacts, "get_artifact", lambda registry, ref: SimpleNamespace(path=tmp_path / "store"))
    assert base._adapted(nothing, "a3") == str(tmp_path / "store" / "base")
    assert base._adapted(nothing, "gpt2") is None
    (tmp_path / "a4").mkdir()
    assert base._adapted(nothing, "a4") is None  # a folder of that name is what it says
    (tmp_path / "store" / "base").rmdir()
    with pytest.raises(BadInput, match="a3 holds no base; only lm-adapt leaves one"):
        base._adapted(nothing, "a3")
