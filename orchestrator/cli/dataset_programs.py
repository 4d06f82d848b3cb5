"""What the verbs of `ptq dataset` share: the registry, and programs of the tensor tower."""

from __future__ import annotations

from typing import Any

import typer

from orchestrator.cli.output.render import note


def printed_by(module: str, request: dict[str, Any]) -> str:
    """Run a program of the tensor tower; what it printed."""
    import subprocess

    from orchestrator.cli.programs import pipe_of, program

    note("counting" if module.endswith("count_tokens") else "writing")
    with program(module, request, stdout=subprocess.PIPE) as process:
        text = pipe_of(process.stdout).read()
    if process.returncode:
        raise typer.Exit(process.returncode)
    return text
