"""`ptq recipe …` as users type it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import in_process
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

GOOD = """\
name: good
base: gpt2
dataset: d
task: {type: generate, input: "{a}", target: "{b}"}
method: {type: prompt-tuning}
train: {steps: 3, lr: 0.1, seeds: [1, 2]}
sweep: {method.length: [1, 2, 3]}
"""


def ptq(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return in_process.ptq(*arguments, cwd=folder, PTQ_HOME=str(folder))


def started(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from orchestrator.cli.main import main; main()", *arguments]
    env = {**os.environ, "PTQ_HOME": str(folder)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(GOOD.replace("lr: 0.1", "lr: fast").replace("dataset: d", "datasett: d"))
    return tmp_path


def test_a_good_recipe_is_told_in_one_line(folder: Path) -> None:
    done = started(folder, "recipe", "check", "good.yaml")
    assert (done.returncode, done.stdout, done.stderr) == (0, "good.yaml: fine, makes 6 jobs\n", "")
    assert ptq(folder, "recipe", "check", "good.yaml", "--set", "sweep={}", "--set", "train.seed=1").stdout == (
        "good.yaml: fine, makes 1 job\n"
    )


def test_every_fault_is_told_with_its_line_and_nothing_is_written(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    done = ptq(folder, "recipe", "check", "good.yaml", "bad.yaml", "--set", "train.steps=x")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "--set: train.steps: must be a valid integer, not 'x'",
        "bad.yaml:1: dataset: is missing",
        "bad.yaml:3: datasett: unknown key; did you mean `dataset`?",
        "bad.yaml:6: train.lr: must be a valid number, not 'fast'",
        "--set: train.steps: must be a valid integer, not 'x'",
    ]
    assert sorted(folder.rglob("*")) == before


def test_check_as_json(folder: Path) -> None:
    done = ptq(folder, "recipe", "check", "--json", "good.yaml", "bad.yaml", "none.yaml")
    assert done.returncode == 2
    good, bad, none = json.loads(done.stdout)
    assert (good["valid"], len(good["jobs"]), good["faults"]) == (True, 6, [])
    assert [fault["where"] for fault in bad["faults"]] == ["bad.yaml:1", "bad.yaml:3", "bad.yaml:6"]
    assert none["faults"][0]["message"] == "there is no such file"


def test_what_is_not_there_is_exit_code_3(folder: Path) -> None:
    assert ptq(folder, "recipe", "check", "none.yaml").returncode == 3
    shown = ptq(folder, "recipe", "show", "zh/p-tunin")
    assert shown.returncode == 3
    assert "did you mean `zh/p-tuning`?" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_list_and_show(folder: Path) -> None:
    names = [recipe["name"] for recipe in json.loads(ptq(folder, "recipe", "list", "--json").stdout)]
    assert {"zh/p-tuning", "e2e/prefix-gpt2-medium"} <= set(names)
    assert all(name in ptq(folder, "recipe", "list").stdout for name in names)
    source = (REPOSITORY / "recipes" / "zh" / "p-tuning.yaml").read_text(encoding="utf-8")
    assert ptq(folder, "recipe", "show", "zh/p-tuning").stdout == source
    shown = json.loads(ptq(folder, "recipe", "show", "zh/p-tuning", "--json").stdout)
    assert shown["recipe"]["task"]["labels"] == {"Positive": ["好", "棒"], "Negative": ["差"]}


def test_a_copy_is_a_recipe_and_is_not_written_over(folder: Path) -> None:
    assert ptq(folder, "recipe", "copy", "zh/p-tuning").stdout == "p-tuning.yaml\n"
    assert ptq(folder, "recipe", "check", "p-tuning.yaml").returncode == 0
    header = (folder / "p-tuning.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert header == f"# yaml-language-server: $schema={(REPOSITORY / 'docs/reference/recipe.schema.json').as_uri()}"
    (folder / "p-tuning.yaml").write_text("mine")
    again = ptq(folder, "recipe", "copy", "zh/p-tuning")
    assert again.returncode == 2
    assert (folder / "p-tuning.yaml").read_text() == "mine"
    assert ptq(folder, "recipe", "copy", "zh/p-tuning", "none/x.yaml").returncode == 3
    assert ptq(folder, "recipe", "copy", "zh/p-tuning", "--force").returncode == 0


def test_the_schema_is_the_reference_page(folder: Path) -> None:
    printed = json.loads(ptq(folder, "recipe", "schema").stdout)
    page = json.loads((REPOSITORY / "docs" / "reference" / "recipe.schema.json").read_text(encoding="utf-8"))
    assert printed == page


def test_it_loads_nothing_heavy(folder: Path) -> None:
    program = (
        "import sys; from orchestrator.cli.main import build_app;"
        "build_app()(['recipe', 'check', 'good.yaml'], standalone_mode=False);"
        "print({'torch', 'transformers', 'accelerate', 'datasets', 'pyarrow'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
