"""`ptq demo`, as a new user runs it: from nothing to predictions, with a large difference between untuned and tuned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.demo import BASE_FOLDER
from orchestrator.demo.restaurants import FORMS, rows

PTQ = [sys.executable, "-P", "-m", "orchestrator.cli.main"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Its home and what it said."""
    home = tmp_path_factory.mktemp("demo") / "home"
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    env.pop("PTQ_HOME", None)
    done = subprocess.run([*PTQ, "demo", "--home", str(home)], env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return home, done.stdout


def ptq(home: Path, *arguments: str, stdin: str = "") -> str:
    env = {**os.environ, "PTQ_HOME": str(home)}
    return subprocess.run([*PTQ, *arguments], env=env, input=stdin, capture_output=True, text=True, check=True).stdout


def test_every_method_beats_the_untuned_base_by_far(demo: tuple[Path, str]) -> None:
    artifacts = json.loads(ptq(demo[0], "artifact", "list", "--json"))
    assert {artifact["method"] for artifact in artifacts} == {"prompt-tuning", "prefix-tuning", "p-tuning"}
    for artifact in artifacts:
        facts = json.loads((Path(artifact["path"]) / "artifact.json").read_text())
        untuned, tuned = facts["baseline"]["validation"], facts["metrics"]["validation"]
        assert untuned["bleu"] < 30, artifact["method"]
        assert tuned["bleu"] > 95, artifact["method"]
        assert untuned["exact_match"] == 0, artifact["method"]
        assert tuned["exact_match"] > 0.8, artifact["method"]


def test_it_shows_table_examples_picture_and_artifacts(demo: tuple[Path, str]) -> None:
    home, said = demo
    assert "BLEU UNTUNED" in said
    assert said.count("  wanted ") == 3
    assert said.count("  untuned ") == 3
    picture = home / "loss-curves.png"
    assert str(picture) in said
    assert picture.read_bytes().startswith(b"\x89PNG")
    for artifact in json.loads(ptq(home, "artifact", "list", "--json")):
        assert artifact["path"] in said


def test_predict_uses_what_the_demo_made(demo: tuple[Path, str]) -> None:
    record = "name: Blue Swan | food: Greek | area: up the hill | price: cheap | stars: four"
    text = ptq(demo[0], "predict", "1", "--input", "-", stdin=json.dumps({"record": record}) + "\n")
    assert text.startswith("Come to ")


def test_the_base_fits_into_a_repository() -> None:
    assert sum(file.stat().st_size for file in BASE_FOLDER.iterdir()) < 5_000_000


def test_held_out_names_never_occur_in_training() -> None:
    names = [{row["list"].split(";")[0] for row in rows(3000, seed=1, held_out=held)} for held in (True, False)]
    assert names[0]
    assert not names[0] & names[1]
    assert set(FORMS) < set(next(rows(1, seed=1, held_out=True)))
