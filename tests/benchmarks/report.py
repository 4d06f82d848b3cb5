"""What the proofs share: where they work, and how they write their table to docs/results/."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"
RESULTS = REPOSITORY / "docs" / "results"


def real_data(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        sys.exit(f"the proof needs the real data in {folder}")
    return folder


def ptq(home: Path, *arguments: str, capture: bool = False) -> str:
    """Run the real command in `home`; stops the proof when it fails."""
    command = [sys.executable, "-P", "-m", "orchestrator.cli.main", *arguments]
    print(f"$ ptq {' '.join(arguments)}", flush=True)
    env = {**os.environ, "PTQ_HOME": str(home)}
    done = subprocess.run(command, env=env, check=False, stdout=subprocess.PIPE if capture else None, text=True)
    if done.returncode:
        sys.exit(f"`ptq {arguments[0]}` ended with {done.returncode}")
    return done.stdout or ""


def write_page(
    name: str, title: str, command: str, text: str, columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    """Print the table and write docs/results/<name>.md."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    table = "\n".join(lines)
    page = f"# {title}\n\n{text.strip()}\n\n{table}\n\n{conditions()} Made by `{command}`.\n"
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.md").write_text(page, encoding="utf-8")
    print(f"\n{table}\n\nwritten to docs/results/{name}.md")


def conditions() -> str:
    """Date, machine and versions in a sentence."""
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "accelerate", "deepspeed")
    )
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU"
    return f"{time.strftime('%Y-%m-%d')}, {machine}, Python {platform.python_version()}, {versions}."
