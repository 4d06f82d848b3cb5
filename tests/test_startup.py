"""Verbs that people wait for load nothing heavy."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from queue_helpers import add_jobs, open_registry, recipe_file

HEAVY = ("torch", "transformers", "accelerate", "deepspeed", "datasets", "numpy", "pandas")
PROGRAM = """
import sys
from orchestrator.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
loaded = sorted(set(sys.modules) & set(sys.stdin.read().split()))
sys.exit(f"loaded: {loaded}" if loaded else 0)
"""


@pytest.mark.parametrize("name", HEAVY)
def test_what_must_not_be_loaded_is_installed(name: str) -> None:
    """Else the test below would pass for the wrong reason."""
    assert importlib.util.find_spec(name) is not None


@pytest.mark.parametrize("verb", ["", "status", "status --json", "logs 1", "events 1", "show 1", "cancel 1", "submit"])
def test_light_verbs(home: Path, tmp_path: Path, verb: str) -> None:
    registry = open_registry(home)
    add_jobs(registry)
    registry.close()
    arguments = ["submit", str(recipe_file(tmp_path))] if verb == "submit" else verb.split()
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, input=" ".join(HEAVY), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    if verb == "submit":
        assert done.stdout == "job 2\n"
