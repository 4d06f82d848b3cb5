"""The wheel carries all that ptq needs: recipes, their schema, the demo's base, the launcher's settings."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from orchestrator.recipe.shipped import shipped_recipes

REPOSITORY = Path(__file__).resolve().parents[2]


def test_ptq_works_from_its_wheel(tmp_path: Path) -> None:
    """Unpacked in a folder that comes first on Python's path; from another one, so that the checkout is not found."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=REPOSITORY, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site)

    def ptq(*arguments: str) -> str:
        env = {**os.environ, "PYTHONPATH": str(site), "PTQ_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-P", "-m", "orchestrator.cli.main", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    listed = ptq("recipe", "list")
    assert shipped_recipes()
    assert [one.name for one in shipped_recipes() if one.name not in listed] == []
    copied = tmp_path / "mine.yaml"
    ptq("recipe", "copy", "demo/prompt-tuning", str(copied))
    assert str(site) in copied.read_text().splitlines()[0]  # the schema beside the wheel's recipes
    ptq("demo", "--home", str(tmp_path / "home"), "--only-data")
    ptq("base", "add", "demo-base", str(site / "orchestrator" / "demo" / "base"))
    assert "queued" in ptq("submit", str(copied)) + ptq("status")
    assert (site / "orchestrator" / "dispatch" / "running" / "accelerate.yaml").is_file()
