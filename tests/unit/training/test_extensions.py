"""Lock files that killed processes left behind."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread

import pytest
from torch.utils.file_baton import FileBaton

from orchestrator.training.extensions import alone_in, extensions_folder

OP = "deepspeed_shm_comm"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / OP).mkdir()
    return tmp_path.resolve()


@pytest.fixture
def started() -> Iterator[list[BaseProcess]]:
    """Killed at the end."""
    processes: list[BaseProcess] = []
    yield processes
    for process in processes:
        process.kill()
        process.join()


def compiling(folder: Path, started: list[BaseProcess], *, ours: bool) -> BaseProcess:
    """A process in the middle of a build: ptq's, or another program's with DeepSpeed."""
    fork = multiprocessing.get_context("fork")
    ready, told = fork.Pipe(duplex=False)
    started.append(fork.Process(target=_compile, args=(folder, told, ours)))
    started[-1].start()
    assert ready.recv() == "compiling"
    return started[-1]


def _compile(folder: Path, told: Connection, ours: bool) -> None:
    def build() -> None:
        assert FileBaton(str(folder / OP / "lock")).try_acquire()
        told.send("compiling")
        time.sleep(100)

    if ours:
        with alone_in(folder, OP):
            build()
    else:
        build()
    os._exit(0)


@pytest.mark.parametrize("ours", [True, False], ids=["ptq", "another program"])
def test_whoever_waits_goes_on_when_the_builder_is_killed(
    ours: bool, folder: Path, started: list[BaseProcess], capfd: pytest.CaptureFixture[str]
) -> None:
    """In the run's log it says why; a live one is waited for."""
    builder = compiling(folder, started, ours=ours)
    lock, built = folder / OP / "lock", []

    def next_run() -> None:
        with alone_in(folder, OP):
            built.append(FileBaton(str(lock)).try_acquire())

    waiting = Thread(target=next_run, daemon=True)
    waiting.start()
    waiting.join(0.4)
    assert waiting.is_alive()
    assert lock.exists()
    builder.kill()
    builder.join()
    waiting.join(10)
    assert built == [True], "it has the lock, for which the next process would have waited for ever"
    assert f"removed {lock}: whoever compiled or loaded there was killed" in capfd.readouterr().out


def test_a_lock_of_a_dead_process_is_in_nobodys_way(
    folder: Path, started: list[BaseProcess], capfd: pytest.CaptureFixture[str]
) -> None:
    builder = compiling(folder, started, ours=True)
    builder.kill()
    builder.join()
    assert (folder / OP / "lock").exists()
    with alone_in(folder):
        assert not (folder / OP / "lock").exists()
    assert capfd.readouterr().out.count("removed") == 1
    with alone_in(folder, OP):
        pass
    assert capfd.readouterr().out == ""


def test_the_folder_is_where_torch_puts_extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert tmp_path in extensions_folder().parents or extensions_folder() == tmp_path
