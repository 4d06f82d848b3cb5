"""`ptq` in this process: dozens of commands need not start dozens of interpreters.

Each file that uses it starts the real command at least once too.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path
from typing import IO

import pytest
from closing import registries_closed

from orchestrator.cli.main import main


def ptq(
    *arguments: str | Path, cwd: Path | None = None, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run would answer; what its child processes print is in it too."""
    given = ["ptq", *map(str, arguments)]
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", given)
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        if cwd is not None:
            stack.enter_context(chdir(cwd))
        stack.enter_context(registries_closed())
        written = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(2)]
        with _instead(patch, "stdout", written[0]), _instead(patch, "stderr", written[1]):
            code = _code()
        out, err = (_text(file) for file in written)
    return subprocess.CompletedProcess(given, code, out, err)


def _code() -> int:
    umask = os.umask(0)  # a shared home changes it for the process
    os.umask(umask)
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        os.umask(umask)
    raise AssertionError("a command ends in SystemExit")


@contextmanager
def _instead(patch: pytest.MonkeyPatch, name: str, file: IO[bytes]) -> Iterator[None]:
    """Whatever is written to the stream or to its descriptor goes into the file."""
    descriptor = {"stdout": 1, "stderr": 2}[name]
    kept = os.dup(descriptor)
    os.dup2(file.fileno(), descriptor)
    stream = io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False), encoding="utf-8", write_through=True)
    patch.setattr(sys, name, stream)
    try:
        yield
    finally:
        stream.flush()
        os.dup2(kept, descriptor)
        os.close(kept)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()
