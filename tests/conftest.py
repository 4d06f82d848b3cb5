"""What every test may ask for: a PTQ_HOME of its own, the real data, no network."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_configure() -> None:
    """Tests send these to programs that they start; a shell's background job and nohup hand them down ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real datasets. Skipped on a user's machine, required where CI=true."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{folder} is missing, and CI=true")
        pytest.skip(f"the real data are not here ({folder})")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PTQ_HOME with an awkward name."""
    folder = tmp_path / "it's a home"
    folder.mkdir()
    monkeypatch.setenv("PTQ_HOME", str(folder))
    monkeypatch.delenv("PTQ_REGISTRY", raising=False)
    return folder
