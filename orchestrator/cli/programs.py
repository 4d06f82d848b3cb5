"""Programs of the tensor tower, started as processes of their own: no verb imports torch."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from orchestrator.paths import write_json
from orchestrator.settings import child_environment, load_settings

NO_CARDS: Mapping[str, str] = {"CUDA_VISIBLE_DEVICES": ""}


@contextmanager
def program(
    module: str,
    spec: dict[str, Any],
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    cards: Mapping[str, str] = NO_CARDS,
) -> Iterator[subprocess.Popen[str]]:
    """Run `python -m MODULE SPEC.json`; on leaving, the process has ended and its exit code is known.

    `cards`: what its environment says of GPUs; it sees none unless told.

    An exception inside (Ctrl-C too) ends the process first.
    """
    with tempfile.TemporaryDirectory(prefix="ptq-") as folder:
        path = Path(folder) / "spec.json"
        write_json(path, {"threads": load_settings().threads, **spec})
        environment = child_environment(TOKENIZERS_PARALLELISM="false", **cards)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(path)],
            stdin=stdin,
            stdout=stdout,
            env=environment,
            text=True,
            encoding="utf-8",
        )
        try:
            yield process
            process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            if process.stdout is not None:
                process.stdout.close()


def pipe_of(stream: IO[str] | None) -> IO[str]:
    """A pipe that was asked for is there."""
    assert stream is not None
    return stream
