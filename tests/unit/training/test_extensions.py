"""Lock files that killed processes left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.training.extensions import clear_stale_locks, extensions_folder

HOLDER = """
import os, sys, time
os.open(sys.argv[1], os.O_CREAT | os.O_EXCL)  # as torch.utils.file_baton does
print("held", flush=True)
time.sleep(100)
"""


def test_a_lock_is_cleared_when_its_holder_was_killed_and_not_before(tmp_path: Path) -> None:
    lock = tmp_path.resolve() / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert clear_stale_locks(tmp_path) == []
        assert lock.exists()
        os.kill(holder.pid, signal.SIGKILL)
    assert lock.exists()
    assert clear_stale_locks(tmp_path) == [lock]
    assert not lock.exists()
    assert clear_stale_locks(tmp_path) == []


def test_the_folder_is_where_torch_puts_extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert tmp_path in extensions_folder().parents or extensions_folder() == tmp_path
