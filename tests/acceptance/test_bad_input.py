"""Bad input through the real command: exit code 2 or 3, one message (what, where, what to do), nothing written.

One home with two bases, a dataset and an artifact; the names and sizes of all its files and every row of its registry
are compared around each command.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sqlite3
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from box import Box
from in_process import ptq
from training_fixtures import make_base

REPOSITORY = Path(__file__).resolve().parents[2]

GENERATE = {"type": "generate", "input": "{text}", "target": "{target}", "max_new_tokens": 4}
CLASSIFY = {"type": "classify", "input": "{text} is [MASK]", "labels": {"warm": ["warm"], "cold": ["cold"]}}
METHOD = {"type": "prompt-tuning", "length": 2}
TRAIN = {"steps": 2, "lr": 0.1, "batch_size": 2}
GOOD: dict[str, Any] = {"task": GENERATE, "method": METHOD, "train": TRAIN}

#: What each recipe has in place of GOOD's parts; `base: enc` is a masked encoder.
RECIPES: dict[str, dict[str, Any]] = {
    "good": {},
    "good-words": {"base": "enc", "task": CLASSIFY},
    "unknown-key": {"methd": 1},
    "wrong-type": {"train": {**TRAIN, "steps": "many"}},
    "huge": {"train": {**TRAIN, "steps": 10**30}},
    "no-dataset": {"dataset": "tinny"},
    "no-version": {"dataset": "tiny@9"},
    "no-field": {"task": {**GENERATE, "input": "{txet}"}},
    "no-fit": {"base": "enc"},
    "mask-on-causal": {"task": CLASSIFY},
    "long": {"method": {"type": "prefix-tuning", "length": 500}},
    "no-room": {"task": {**GENERATE, "max_new_tokens": 62}},
    "pickle": {"base": "./pickled"},
    "own-code": {"base": "./own-code"},
    "allowed-code": {"base": {"model": "tiny", "trust_remote_code": True}},
    "several-tokens": {"base": "enc", "method": {"type": "warp", "length": 2},
                       "task": {**CLASSIFY, "labels": {"warm": ["red cat"], "cold": ["cold"]}}},
    "unknown-word": {"base": "enc", "task": {**CLASSIFY, "labels": {"warm": ["lukewarm"], "cold": ["cold"]}}},
    "label-not-named": {"base": "enc", "task": {**CLASSIFY, "labels": {"warm": ["warm"], "hot": ["red"]}}},
    "label-template": {"base": "enc", "task": {**CLASSIFY, "label": "{target}"}},
    "own-words": {"base": "enc", "task": {**CLASSIFY, "labels": {"warm": ["{text}"], "cold": ["red cat"]}}},
    "own-candidates": {"base": "enc", "task": {"type": "classify", "input": "{text} [MASK]", "candidates": "{text}",
                                               "label": "{target}"}},
    "bad-sweep": {"sweep": {"method.length": [2, "three"]}},
    "sweep-of-methods": {"sweep": {"method.type": ["prompt-tuning", "head"]}},
    "sweep-of-bases": {"sweep": {"base.model": ["tiny", "enc"]}},
    "hub": {"base": "gpt2-medium"},
    "no-folder": {"base": "./nowhere"},
    "two-slots": {"resources": {"gpus": 2}},
}  # fmt: skip

FILES: dict[str, bytes] = {
    "empty.jsonl": b"",
    "latin.csv": b"a,b\n1,caf\xe9\n",
    "short.csv": b"a,b\n1,2\n3\n",
    "no-text.jsonl": b'{"text": "red cat"}\n{"words": "red cat"}\n',
    "rows.jsonl": b'{"text": "red cat"}\n',
    "rows.xyz": b"red cat\n",
    "latin.yaml": b"name: caf\xe9\n",
    "list.yaml": b"- name\n",
    "bytes.yaml": bytes(range(256)),
}

#: (command, exit code, what the message must say)
CASES: list[tuple[str, int, list[str]]] = [
    # The recipe
    ("submit unknown-key.yaml", 2, ["unknown-key.yaml:3: methd: unknown key; did you mean `method`?"]),
    ("submit wrong-type.yaml", 2, ["wrong-type.yaml:15: train.steps: must be a valid integer, not 'many'"]),
    ("submit huge.yaml", 2, ["huge.yaml:15: train.steps: must be less than or equal to"]),
    ("submit missing.yaml", 3, ["missing.yaml: there is no such file", "ptq recipe list"]),
    ("run missing.yaml", 3, ["missing.yaml: there is no such file"]),
    ("submit .", 2, [".: cannot be read: Is a directory"]),
    ("submit list.yaml", 2, ["list.yaml:1: a recipe is a mapping"]),
    ("submit bytes.yaml", 2, ["bytes.yaml:2: not UTF-8 (byte 0x80)"]),
    ("submit good.yaml latin.yaml", 2, ["latin.yaml:1: not UTF-8 (byte 0xe9); save the file as UTF-8"]),
    ("submit good.yaml --set nonsense", 2, ["--set: `nonsense` is not key=value; write for example"]),
    ("submit good.yaml --set train.lrr=1", 2, ["--set: train.lrr: unknown key; did you mean `lr`?"]),
    ("submit good.yaml --set train.lr=fast", 2, ["--set: train.lr: must be a valid number, not 'fast'"]),
    ("submit bad-sweep.yaml", 2, ["bad-sweep.yaml:8: sweep.method.length: three: must be a valid integer"]),
    ("submit sweep-of-methods.yaml", 2, ["sweep-of-methods.yaml:8: sweep.method.type", "with method.type = head"]),
    ("submit sweep-of-bases.yaml", 2, ["enc (BertForMaskedLM, masked encoder) cannot write text"]),
    (f"submit '{REPOSITORY}/recipes/demo/base.yaml'", 2, ["a recipe that pretrains a base is not submitted"]),
    ("base pretrain good.yaml -o made", 2, ["good.yaml:1: pretrain: is missing"]),
    ("recipe copy zh/p-tuning good.yaml", 2, ["good.yaml: is there already", "--force"]),
    # The recipe on its base and data
    ("submit no-dataset.yaml", 3, ["there is no dataset 'tinny'", "did you mean 'tiny'?"]),
    ("submit no-version.yaml", 3, ["tiny has no version 9; its newest is tiny@1"]),
    ("submit no-field.yaml", 2, ["no-field.yaml", "task.input", "no field `txet`; did you mean `text`?"]),
    ("submit no-fit.yaml", 2, ["no-fit.yaml", "task.type", "cannot write text; use a causal or encoder-decoder base"]),
    ("submit mask-on-causal.yaml", 2, ["mask-on-causal.yaml", "task.input", "has no [MASK]; take [MASK] out"]),
    ("submit long.yaml", 2, ["long.yaml", "method.length: 500 virtual tokens", "context of 64 positions"]),
    ("submit no-room.yaml", 2, ["no-room.yaml", "task.max_new_tokens", "at most 61 fit"]),
    ("submit several-tokens.yaml", 2, ["`red cat` is not one token", "warp needs single", "choose another word"]),
    ("submit unknown-word.yaml", 2, ["task.labels", "`lukewarm` is not in the vocab", "choose another word"]),
    ("submit label-not-named.yaml", 2, ["task.labels", "tiny@1 holds the label `cold` (train row 2)", "add what"]),
    ("submit label-template.yaml", 2, ["the labels `cat` (train row 1), `house` (train row 2)", "and 1 more"]),
    ("submit own-words.yaml", 2, ["task.labels: tiny@1, train row 1: the word `red cat` stands under `cold` and"]),
    ("submit own-candidates.yaml", 2,
     ["task.candidates: tiny@1, train row 1: a row's answer `cat` is not among what it can be chosen from (red cat)"]),
    ("submit own-code.yaml", 2, ["base.trust_remote_code", "brings its own Python code; if you trust it"]),
    ("submit allowed-code.yaml", 2, ["does not run a base's own code", "PTQ_ALLOW_REMOTE_CODE=1"]),
    ("submit pickle.yaml", 2, ["only pickled weights (pytorch_model.bin)", "safe_serialization"]),
    ("submit hub.yaml", 3, ["HF_HUB_OFFLINE is set", "`ptq base add NAME PATH`"]),
    ("submit no-folder.yaml", 3, ["no base and no folder './nowhere'", "`ptq base add NAME PATH`"]),
    ("run two-slots.yaml --cpu-slots 1", 2, ["needs 2 slots, here are 1", "--cpu-slots"]),
    ("submit good.yaml --after 77", 3, ["there is no job 77", "`ptq status --all`"]),
    # Bases
    ("base add new pickled", 2, ["only pickled weights (pytorch_model.bin)", "safe_serialization"]),
    ("base add new renamed-pickle", 2, ["model.safetensors: not a safetensors file", "fetch the model again"]),
    ("base add new broken-config", 2, ["config.json: cannot be read", "save_pretrained"]),
    ("base add new strange-header", 2, ["model.safetensors: not a safetensors file", "fetch the model again"]),
    ("base add new half", 2, ["names part-2.safetensors, which is not in the folder", "fetch the model again"]),
    ("base add new untokenized", 2, ["no tokenizer in this folder", "tokenizer.save_pretrained"]),
    ("base add tiny ./base-bert", 2, ["there is another base 'tiny'", "choose another name"]),
    # Data
    ("dataset add new empty.jsonl", 2, ["empty.jsonl: there are no rows; nothing was written"]),
    ("dataset add new latin.csv", 2, ["latin.csv:2: not UTF-8 (byte 0xe9 at character 6)", "iconv", "--skip-bad"]),
    ("dataset add new short.csv", 2, ["short.csv:3: 1 column where 2 are expected (a, b)", "--skip-bad"]),
    ("dataset add new missing.csv", 3, ["missing.csv: no such file"]),
    # Jobs and artifacts
    ("status 99", 3, ["there is no job 99", "`ptq status --all`"]),
    ("show x", 3, ["there is no job 'x'"]),
    ("logs 99", 3, ["there is no job 99"]),
    ("events 99", 3, ["there is no job 99"]),
    ("cancel 1 99", 3, ["there is no job 99"]),
    ("retry 99", 3, ["there is no job 99"]),
    ("plot 99", 3, ["there is no job 99"]),
    ("plot 1 -o x.gif", 2, ["x.gif: not a picture's suffix", ".png, .svg, .pdf"]),
    ("artifact show a99", 3, ["there is no artifact 'a99'", "`ptq artifact list`"]),
    ("artifact export a1 -o home", 2, ["home: already exists", "does not exist yet"]),
    ("predict a99 --input rows.jsonl", 3, ["there is no artifact 'a99'", "`ptq artifact list`"]),
    ("predict a1 --input no-text.jsonl", 2, ["no-text.jsonl:2: the row lacks text", "the row has words"]),
    ("predict a1 --input rows.xyz", 2, ["rows.xyz: the suffix '.xyz'", "--input -"]),
    ("predict a1 --input -", 2, ["standard input: there are no rows"]),
    ("predict a1 --input rows.jsonl -o nowhere/out.txt", 3, ["nowhere: there is no such folder", "mkdir -p nowhere"]),
]  # fmt: skip

#: Refused by the command line's own parser.
USAGE: list[tuple[str, str]] = [
    ("frobnicate", "No such command 'frobnicate'"),
    ("submit good.yaml --priority urgent", "'urgent' is not one of 'low', 'normal', 'high'"),
]

OUTSIDE = ["show 1", "cancel 1", "predict a1 --input -", "plot 1", "artifact list", "base list", "dataset verify"]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    root = tmp_path_factory.mktemp("bad input")
    made = Box.made(root / "home", rows=12)
    made.cwd = root
    made.ok("base", "add", "enc", str(make_base(root / "base-bert", "bert")))
    for name, content in FILES.items():
        (root / name).write_bytes(content)
    for name, parts in RECIPES.items():
        made.recipe(name, **{**GOOD, **parts})
    _damaged_bases(root)
    made.ok("submit", "good.yaml")
    made.work()
    assert made.job(1)["artifact"] == "a1"
    yield made
    made.close()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache of the hub's with nothing in it."""
    return str(tmp_path_factory.mktemp("hub"))


def typed(box: Box, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In this process, but for what reads the hub's settings as it is imported."""
    words = shlex.split(command)
    if "hub" in command:
        return box.run(*words, **environment)
    return ptq(*words, cwd=box.cwd, PTQ_HOME=str(box.home), **environment)


def test_what_the_bad_ones_are_made_from_is_good(box: Box) -> None:
    """Else they might be refused for another reason."""
    said = box.ok("submit", "good.yaml", "good-words.yaml", "--dry-run")
    assert said.count("good") >= 2


@pytest.mark.parametrize(("command", "code", "said"), CASES, ids=[case[0].replace("/", " ")[-60:] for case in CASES])
def test_bad_input(box: Box, hub: str, command: str, code: int, said: list[str]) -> None:
    before = everything(box)
    done = typed(box, command, HF_HUB_OFFLINE="1", HF_HOME=hub)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("ptq: "), done.stderr
    assert done.stderr.count("ptq: ") == 1, done.stderr
    assert "Traceback" not in done.stderr
    for part in said:
        assert part in done.stderr
    assert everything(box) == before


@pytest.mark.parametrize(("command", "said"), USAGE)
def test_what_the_parser_refuses(box: Box, command: str, said: str) -> None:
    before = everything(box)
    done = typed(box, command)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("Usage: ptq ")
    assert said in done.stderr
    assert everything(box) == before


@pytest.mark.parametrize("command", OUTSIDE)
def test_without_a_registry(tmp_path: Path, command: str) -> None:
    done = typed(Box(tmp_path, cwd=tmp_path), command)
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    assert done.stderr == (
        f"ptq: {tmp_path}/registry.db: there is no registry here\n"
        "  make one here with `ptq init`, or set PTQ_HOME to the folder that holds one\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_artifact_and_a_base_that_moved(box: Box, tmp_path: Path) -> None:
    """Found by the program that predicts; what stood in the output file stays."""
    home = tmp_path / "home"
    shutil.copytree(box.home, home)
    copy, output = Box(home, cwd=box.cwd), tmp_path / "out.txt"
    output.write_text("kept")
    (prompt,) = home.glob("store/artifacts/*/prompt.safetensors")
    prompt.write_bytes(prompt.read_bytes()[:-1])
    done = copy.run("predict", "a1", "--input", "rows.jsonl", "--output", str(output))
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "the artifact is damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert output.read_text() == "kept"


def everything(box: Box) -> tuple[dict[str, int], list[str]]:
    """Names and sizes of all files around the home and in it, and the whole contents of its registry."""
    assert box.cwd is not None
    registry = sqlite3.connect(box.home / "registry.db")
    rows = list(registry.iterdump())
    registry.close()
    return {str(path): path.stat().st_size if path.is_file() else -1 for path in box.cwd.rglob("*")}, rows


def _damaged_bases(root: Path) -> None:
    def copied(name: str) -> Path:
        return Path(shutil.copytree(root / "base-gpt2", root / name))

    weights = "model.safetensors"
    (copied("pickled") / weights).rename(root / "pickled" / "pytorch_model.bin")
    (copied("renamed-pickle") / weights).write_bytes(b"\x80\x04\x95" + bytes(100))
    (copied("broken-config") / "config.json").write_text('{"model_type": "gpt2",')
    header = json.dumps({"w": {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}}).encode()
    (copied("strange-header") / weights).write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    half = copied("half")
    (half / weights).rename(half / "part-1.safetensors")
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    (half / f"{weights}.index.json").write_text(json.dumps(index))
    for path in copied("untokenized").glob("tokenizer*"):
        path.unlink()
    config = copied("own-code") / "config.json"
    facts = {**json.loads(config.read_text()), "model_type": "mine", "architectures": ["MineForCausalLM"]}
    config.write_text(json.dumps({**facts, "auto_map": {"AutoModelForCausalLM": "mine.Model"}}))
