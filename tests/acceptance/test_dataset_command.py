"""`ptq init`, `ptq dataset` and `ptq base` as a user runs them: output, exit codes, and what is left on the disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.settings import child_environment

Ptq = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def ptq(home: Path, tmp_path: Path) -> Ptq:
    command = Path(sys.executable).with_name("ptq")

    def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(command), *map(str, arguments)],
            cwd=tmp_path,
            env=child_environment(**environment),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    return done.stdout


def failed(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one message; nothing on stdout."""
    assert (done.returncode, done.stdout) == (code, ""), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(succeeded(done))


def test_add_list_show_verify_on_real_data(ptq: Ptq, shared_data: Path, home: Path) -> None:
    e2e = shared_data / "e2e"
    arguments = ["--train", e2e / "src1_train.lines00001-20000.txt", "--validation", e2e / "src1_valid.txt"]
    arguments += ["--test", e2e / "src1_test.txt", "--delimiter", "||", "--columns", "source,target"]
    added = answer(ptq("dataset", "add", "e2e", *arguments, "--json"))
    assert (added["ref"], added["new"], added["bad_rows"]) == ("e2e@1", True, 0)
    assert added["fields"] == ["source", "target"]
    assert added["splits"] == {"train": 20_000, "validation": 4_672, "test": 4_693}
    assert added["duplicates"] == _repeated(e2e)
    again = ptq("dataset", "add", "e2e", *arguments)
    assert "e2e@1: 29,365 rows (these rows were there already; nothing was added)" in succeeded(again)
    (listed,) = answer(ptq("dataset", "list", "--json"))
    assert (listed["ref"], listed["digest"], listed["path"]) == ("e2e@1", added["digest"], added["path"])
    shown = answer(ptq("dataset", "show", "e2e", "--rows", "2", "--split", "train", "--json"))
    first = (e2e / "src1_train.lines00001-20000.txt").read_text(encoding="utf-8").split("\n")[0]
    assert list(shown["rows"]) == ["train"]
    assert "{source}||{target}".format(**shown["rows"]["train"][0]) == first
    assert succeeded(ptq("dataset", "verify")) == "e2e@1: whole\n"
    arrow = home / "store" / "datasets" / added["digest"].removeprefix("sha256:") / "test.arrow"
    content = bytearray(arrow.read_bytes())
    content[len(content) // 2] ^= 1
    arrow.write_bytes(content)
    done = ptq("dataset", "verify", "e2e@1")
    assert (done.returncode, done.stdout) == (1, "e2e@1: test.arrow: differs from its hash\n")


def _repeated(e2e: Path) -> int:
    count = 0
    for path in e2e.glob("src1_*.txt"):
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        count += len(lines) - len(set(lines))
    return count


def test_leading_labels_tab_separated_and_json_lines(ptq: Ptq, shared_data: Path) -> None:
    sst2, zh = shared_data / "sst2", shared_data / "zh" / "eprstmt"
    leading = ["--delimiter", " ", "--columns", "label,sentence", "--split-first"]
    arguments = ["--train", sst2 / "stsa.binary.train", "--validation", sst2 / "stsa.binary.dev", *leading]
    added = answer(ptq("dataset", "add", "sst2", *arguments, "--json"))
    assert added["splits"] == {"train": 6_920, "validation": 872}
    added = answer(ptq("dataset", "add", "sst2", sst2 / "clairett_dev.tsv", "--columns", "sentence,label", "--json"))
    assert (added["ref"], added["splits"]) == ("sst2@2", {"train": 872})
    without = ptq("dataset", "add", "zh", "--train", zh / "train_0.json", "--test", zh / "test.json")
    message = failed(without, 2)
    assert f"{zh}/test.json:1: lacks the field 'label'" in message
    assert "and 743 more" in message
    added = answer(
        ptq("dataset", "add", "zh", "--train", zh / "train_0.json", "--test", zh / "test_public.json", "--json")
    )
    assert added["splits"] == {"train": 32, "test": 610}
    rte = shared_data / "fewglue" / "RTE"
    added = answer(ptq("dataset", "add", "rte", rte / "val.jsonl", "--split", "0.5/0.25/0.25", "--seed", "3", "--json"))
    assert sum(added["splits"].values()) == 277
    assert list(added["splits"]) == ["train", "validation", "test"]
    cut = ptq("dataset", "add", "cut", sst2 / "stsa.binary.dev", "--delimiter", "||", "--columns", "label,sentence")
    assert "872 of 872 rows cannot be used" in failed(cut, 2)


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (b"", [], "there are no rows"),
        (b"a,b\n1,2\n3\n", [], "rows.csv:3: 1 column where 2 are expected (a, b)"),
        (b"a,b\n1,caf\xe9\n", [], "rows.csv:2: not UTF-8 (byte 0xe9 at character 6)"),
        (b"a,b\n1,\n", [], "rows.csv:2: the field 'b' is empty"),
        (b"a,b\n1,2\x00\n", [], "rows.csv:2: the field 'b' holds a NUL character"),
        (b"a,b\n1,2\n", ["--format", "parquet"], "rows.csv:1: not readable as Parquet"),
        (b"a,b\n1,2\n", ["--required", "c"], "--required names the field 'c'"),
        (b"a,b\n1,2\n", ["--split", "0.9/0.2"], "--split: '0.9/0.2': the parts make 1.1, not 1"),
        (b"a,b\n1,2\n", ["--split", "0.9/0.1", "--test", "x.csv"], "--split divides SOURCE"),
    ],
)
def test_bad_input_exits_2_and_writes_nothing(
    ptq: Ptq, home: Path, tmp_path: Path, content: bytes, arguments: list[str], message: str
) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    assert message in failed(ptq("dataset", "add", "x", "rows.csv", *arguments), 2)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["dataset", "add", "x", "missing.csv"], 3, "missing.csv: no such file"),
        (["dataset", "add", "x"], 2, "nothing to read"),
        (["dataset", "add", "a/b", "missing.csv"], 2, "'a/b' cannot be a name for a dataset"),
        (["dataset", "add", "x", "."], 2, "not a file"),
        (["dataset", "list"], 3, "ptq init"),
        (["base", "add", "x", "./missing"], 3, "no base and no folder './missing'"),
        (["artifact", "export", "a1", "-o", "out"], 3, "ptq init"),
    ],
)
def test_refusals_write_nothing(ptq: Ptq, home: Path, arguments: list[str], code: int, message: str) -> None:
    assert message in failed(ptq(*arguments), code)
    assert list(home.iterdir()) == []


def test_an_offline_hub_says_what_to_do(ptq: Ptq, home: Path, tmp_path: Path) -> None:
    done = ptq("dataset", "add", "x", "hub:stanfordnlp/sst2", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf"))
    message = failed(done, 3)
    assert "hub:stanfordnlp/sst2: " in message
    assert "ptq dataset add NAME --train FILE" in message
    assert list(home.iterdir()) == []


def test_a_dataset_of_the_hub_is_pinned_to_its_commit(ptq: Ptq, tmp_path: Path) -> None:
    """From the cache of `datasets`, as an earlier fetch has left it."""
    commit = "5f3c" * 10
    kept = tmp_path / "hf" / "datasets" / "ann___films" / "default" / "0.0.0" / commit
    kept.mkdir(parents=True)
    rows = pa.table({"text": ["good", "bad", "fine"]})
    with pa.ipc.new_stream(str(kept / "films-train.arrow"), rows.schema) as file:
        file.write_table(rows)
    split = {"name": "train", "num_bytes": 1, "num_examples": 3, "dataset_name": "films"}
    version = {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0}
    facts = {"builder_name": "parquet", "dataset_name": "films", "config_name": "default", "version": version}
    facts |= {"features": {"text": {"dtype": "string", "_type": "Value"}}, "splits": {"train": split}}
    (kept / "dataset_info.json").write_text(json.dumps(facts))
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    made = answer(ptq("dataset", "add", "x", "hub:ann/films", "--json", **offline))
    assert made["source"]["hub"] == {"id": "ann/films", "config": None, "revision": None, "commit": commit}
    assert made["splits"] == {"train": 3}
    assert f"hub:ann/films at {commit}" in succeeded(ptq("dataset", "show", "x"))
    again = answer(ptq("dataset", "add", "x", f"hub:ann/films@{commit}", "--json", **offline))
    assert (again["ref"], again["new"]) == ("x@1", False)
    refused = failed(ptq("dataset", "add", "x", "hub:ann/films@v2", **offline), 3)
    assert "the revision v2 cannot be asked for" in refused
    assert commit in refused


def test_the_hub_program_writes_classes_by_name(tmp_path: Path) -> None:
    source, out = tmp_path / "repository", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    features = {
        "label": {"names": ["neg", "pos"], "_type": "ClassLabel"},
        "text": {"dtype": "string", "_type": "Value"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for split, labels in (("train", [0, 1]), ("test", [-1, 1])):
        rows = pa.table({"text": [f"{split} é", "b"], "label": labels}).replace_schema_metadata(metadata)
        pq.write_table(rows, source / f"{split}.parquet")
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.training.hub_dataset", str(source), str(out)],
        env=child_environment(HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    files = answer(done)["splits"]
    found = {split: [json.loads(line) for line in Path(path).read_text().splitlines()] for split, path in files.items()}
    assert found == {
        "train": [{"text": "train é", "label": "neg"}, {"text": "b", "label": "pos"}],
        "test": [{"text": "test é", "label": None}, {"text": "b", "label": "pos"}],
    }


def test_bad_rows_set_aside_can_be_looked_at(ptq: Ptq, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"a,b\n1,2\n3\ncaf\xe9,4\n5,6\n")
    done = ptq("dataset", "add", "x", "rows.csv", "--skip-bad")
    assert "x@1: 2 rows" in succeeded(done)
    assert "2 bad rows were set aside: `ptq dataset show x@1 --bad`" in done.stderr
    aside = answer(ptq("dataset", "show", "x", "--bad", "--json"))
    assert [(row["file"], row["line"], row["raw"]) for row in aside] == [
        ("rows.csv", 3, "3"),
        ("rows.csv", 4, "caf\\xe9,4"),
    ]
    assert "rows.csv:3: 1 column where 2 are expected" in succeeded(ptq("dataset", "show", "x", "--bad"))


def test_not_found_gives_a_hand(ptq: Ptq, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    succeeded(ptq("dataset", "add", "reviews", "rows.csv"))
    assert "did you mean 'reviews'?" in failed(ptq("dataset", "show", "review"), 3)
    assert "its newest is reviews@1" in failed(ptq("dataset", "show", "reviews@4"), 3)
    assert "it has: train" in failed(ptq("dataset", "show", "reviews", "--split", "test"), 3)
    assert failed(ptq("artifact", "show", "a1"), 3)
    assert "not an artifact" in failed(ptq("artifact", "show", "?"), 2)
    assert "NAME@VERSION" in failed(ptq("dataset", "show", "reviews@x"), 2)


def test_init_and_the_home_of_a_subfolder(ptq: Ptq, tmp_path: Path, home: Path) -> None:
    assert succeeded(ptq("init")) == f"{home}/registry.db: made\n"
    assert succeeded(ptq("init")) == f"{home}/registry.db: was there already\n"
    assert answer(ptq("init", "--migrate", "--json"))["made"] is False
    assert [path.name for path in home.iterdir()] == ["registry.db"]
    (home / "registry.db").write_bytes(b"x" * 5000)
    assert "not a database" in failed(ptq("init"), 1)


def test_an_interruption_leaves_nothing(ptq: Ptq, home: Path, tmp_path: Path) -> None:
    """Ctrl-C while the command waits for the rest of a file that is still being read."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"t": "x"}\n' * 3_000_000)
    # a shell that runs the tests in the background has made its children deaf to Ctrl-C
    hearing = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hearing, str(Path(sys.executable).with_name("ptq")), "dataset", "add", "x", str(rows)],
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    store = home / "store"
    while not (store.exists() and list(store.iterdir())):
        assert process.poll() is None
    os.kill(process.pid, 2)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in error) == (130, False)
    assert list(home.iterdir()) == []


def test_tables_are_plain_text_and_json_is_alone_on_stdout(ptq: Ptq, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n1,2\n")
    done = ptq("dataset", "add", "x", "rows.csv", "--json")
    assert answer(done)["duplicates"] == 1
    for verb in ("dataset", "base", "artifact"):
        listed = ptq(verb, "list")
        assert "\x1b" not in succeeded(listed) + listed.stderr
        assert isinstance(answer(ptq(verb, "list", "--json")), list)
    assert succeeded(ptq("dataset", "list")).splitlines()[1].split()[:4] == ["x@1", "2", "train", "2"]
