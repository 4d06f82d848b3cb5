"""The guide to the library is run, block by block, in a folder that holds a base and an artifact."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from training_fixtures import make_base

from orchestrator.settings import child_environment
from orchestrator.weights import fingerprint

REPOSITORY = Path(__file__).resolve().parent.parent
GUIDE = REPOSITORY / "docs" / "howto" / "python.md"
ARTIFACT = """
import json, sys
from pathlib import Path
import numpy as np
from orchestrator.tuning.adapters import take_in
np.save("p.npy", np.ones((2, 32), np.float32))
spec = {"id": "base", "path": "base", "revision": "r", "fingerprint": sys.argv[1], "kind": "causal"}
take_in(Path("p.npy"), Path("artifact"), name="made", base=spec)
"""


def test_the_guide_runs(tmp_path: Path) -> None:
    make_base(tmp_path / "base", "gpt2")
    blocks = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    program = ARTIFACT + "\n".join(blocks) + "\nassert 'sqlalchemy' not in sys.modules\n"
    (tmp_path / "guide.py").write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "guide.py", fingerprint(tmp_path / "base")],
        cwd=tmp_path, env=child_environment(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert " -> " in done.stdout
